"""Which locations are read, and which a stranger's model does not get."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from onnx_tailor.errors import ModelError
from onnx_tailor.weights.files import DataFile, resolve_location


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/etc/passwd",
        "../weights",
        "a/../../weights",
        "a\\..\\..\\weights",
        "C:\\weights",
        "C:weights",
        "\\\\host\\share\\weights",
        "\\weights",
        "weights\0",
        "..",
    ],
)
def test_a_location_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(ModelError, match=r"weight w: its data location .* is not inside the model's folder"):
        resolve_location(tmp_path / "m.onnx", location, "w")


@pytest.mark.parametrize("location", ["weights", "a/weights", "a\\weights", "./weights"])
def test_a_location_inside_the_folder_is_read(tmp_path: Path, location: str) -> None:
    found = resolve_location(tmp_path / "m.onnx", location, "w")
    assert found == tmp_path / location.replace("\\", "/")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "model" / "weights").symlink_to(tmp_path / "secret")
    (tmp_path / "model" / "folder").symlink_to(tmp_path)
    for location in ("weights", "folder/secret"):
        with pytest.raises(ModelError, match="is a link out of the model's folder"):
            resolve_location(tmp_path / "model" / "m.onnx", location, "w")


def test_the_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    """In the Hugging Face cache model and data are links, both into one folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob in (("model.onnx", "aa"), ("model.onnx_data", "bb")):
        (blobs / blob).write_bytes(b"x")
        (snapshot / name).symlink_to(blobs / blob)
    assert resolve_location(snapshot / "model.onnx", "model.onnx_data", "w") == snapshot / "model.onnx_data"
    (tmp_path / "secret").write_bytes(b"secret")
    (snapshot / "other").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="is a link out of the model's folder"):
        resolve_location(snapshot / "model.onnx", "other", "w")


def test_only_ordinary_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for a writer
    for path in (tmp_path / "folder", tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ModelError, match="is no ordinary file"):
            DataFile.open(path)
    with pytest.raises(ModelError, match=r"is missing; put it beside the ONNX file"):
        DataFile.open(tmp_path / "missing")


def test_a_thread_keeps_few_of_many_files_open(tmp_path: Path) -> None:
    """torch.onnx writes large models with a file for each weight; a process may have some 1000 open."""
    files = []
    for number in range(200):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]))
        files.append(DataFile.open(path))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208
    for _ in range(2):
        for number, file in enumerate(files):
            buffer = np.empty(1, np.uint8)
            file.read_into(0, buffer)
            assert buffer[0] == number
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 70  # noqa: PTH208
