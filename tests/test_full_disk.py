"""A disk that is really full: a small tmpfs, which root may mount. OUT is absent or as it was, in one sentence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import handmade
import pytest
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app
from onnx_tailor.weights import view

SIZE = 3 << 19


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1.5 MiB."""
    if sys.platform != "linux":
        pytest.skip("a tmpfs is Linux's")
    where = tmp_path / "disk"
    where.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", where], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose tied copy has 1 MiB: it fits the empty disk, and no longer when that is half full."""
    return handmade.decoder(tmp_path / "in" / "model.onnx", rows=512, columns=256)


@pytest.fixture(autouse=True)
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "TILE_BYTES", 16384)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def without_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run begin that the check before the first byte would refuse: another program fills the disk later."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 40))


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_fills_up_leaves_the_output_as_it_was(
    tmp_path: Path, disk: Path, model: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    out, filler = disk / "out", disk / "filler"
    if there:
        out.mkdir()
        (out / "mine").write_bytes(b"mine")
    filler.write_bytes(bytes(SIZE // 2))
    without_forecast(monkeypatch)
    result = call("run", "tie", model, "-o", out, "--overwrite")
    assert result.exit_code == 1
    state = "is as it was" if there else "was not written"
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: No space left on device; {out} {state}; the same command with --resume goes on where it stopped"
    ]
    assert "Traceback" not in result.stderr
    assert handmade.contents(out) == ({"mine": b"mine"} if there else {})
    assert out.exists() == there

    filler.unlink()
    assert call("run", "tie", model, "-o", out, "--overwrite", "--resume").exit_code == 0
    assert call("run", "tie", model, "-o", tmp_path / "roomy").exit_code == 0
    assert handmade.contents(out) == handmade.contents(tmp_path / "roomy")
    assert sorted(file.name for file in disk.iterdir()) == ["out"]


def test_too_small_a_disk_is_said_before_the_first_byte(disk: Path, model: Path) -> None:
    (disk / "filler").write_bytes(bytes(SIZE // 2))
    result = call("run", "tie", model, "-o", disk / "out")
    assert result.exit_code == 1
    assert f"{disk}: the output needs " in result.stderr
    assert "left; make room, or write to another disk" in result.stderr
    assert sorted(file.name for file in disk.iterdir()) == ["filler"]
