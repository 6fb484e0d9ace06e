"""Models and outputs on object stores: the same bytes as on a disk, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import handmade
import pytest
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app
from onnx_tailor.cluster import parcels
from onnx_tailor.remote import Url, place
from onnx_tailor.weights import view

fsspec = pytest.importorskip("fsspec", reason="the extra `cluster` is not installed")
pytest.importorskip("s3fs", reason="the extra `cluster` is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto, which plays S3, is not installed")

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 on this machine, which every process that is started meanwhile takes for the real one."""
    started = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(key, value)
        yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty bucket, with the current folder in an empty one."""
    files = fsspec.filesystem("s3", use_listings_cache=False)
    name = "b" + str(abs(hash(request.node.name)))
    files.mkdir(name)
    yield f"s3://{name}"
    files.rm(name, recursive=True)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(view, "TILE_BYTES", 16384)
    monkeypatch.setattr(view, "_MIN_SEGMENT", 16)
    monkeypatch.setattr(parcels, "PARCEL_BYTES", 65536)
    return tmp_path / "here"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def uploaded(folder: Path, url: str) -> dict[str, bytes]:
    """Write a model with companions, also into the store; return what a local run makes of it."""
    handmade.decoder(folder / "in" / "model.onnx", rows=512, columns=256)
    (folder / "in" / "tokenizer.json").write_text("{}")
    files, inside = fsspec.core.url_to_fs(url)
    files.makedirs(f"{inside}/in", exist_ok=True)
    for file in (folder / "in").iterdir():
        files.put_file(str(file), f"{inside}/in/{file.name}")
    result = call("run", "rtn", folder / "in", "-o", folder / "local")
    assert result.exit_code == 0, result.output
    return handmade.contents(folder / "local")


def stored(url: str) -> dict[str, bytes]:
    files, inside = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return (
        {name[len(inside) + 1 :]: files.cat_file(name) for name in files.find(inside)} if files.exists(inside) else {}
    )


@pytest.mark.parametrize("model", ["in", "in/model.onnx"])
def test_from_s3_to_s3_by_threads(tmp_path: Path, bucket: str, here: Path, model: str) -> None:
    uploaded(tmp_path, bucket)
    result = call("run", "rtn", f"{bucket}/{model}", "-o", f"{bucket}/out")
    assert result.exit_code == 0, result.output
    assert call("run", "rtn", tmp_path / model, "-o", tmp_path / "same").exit_code == 0
    assert stored(f"{bucket}/out") == handmade.contents(tmp_path / "same")
    assert list(here.iterdir()) == []


def test_from_s3_to_s3_by_the_workers_of_a_cluster(tmp_path: Path, bucket: str, here: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    expected = uploaded(tmp_path, bucket)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        where = cluster.scheduler_address.replace("tcp://", "dask://")
        result = call("run", "rtn", f"{bucket}/in", "-o", f"{bucket}/out", "--executor", where)
    assert result.exit_code == 0, result.output
    assert stored(f"{bucket}/out") == expected
    assert list(here.iterdir()) == []


@pytest.fixture
def memory() -> Iterator[str]:
    """A store in this process, of an interface that all stores have."""
    yield "memory://models"
    fsspec.filesystem("memory").rm("/models", recursive=True)


def test_any_file_system_that_fsspec_knows(tmp_path: Path, memory: str, here: Path) -> None:
    expected = uploaded(tmp_path, memory)
    assert call("run", "rtn", f"{memory}/in", "-o", tmp_path / "out").exit_code == 0
    assert handmade.contents(tmp_path / "out") == expected
    assert call("run", "rtn", tmp_path / "in", "-o", f"{memory}/out").exit_code == 0
    assert stored(f"{memory}/out") == expected
    plan = json.loads(call("run", "rtn", f"{memory}/in", "--dry-run", "--json").stdout)
    assert plan["model"] == f"{memory}/in"
    assert list(here.iterdir()) == []


def test_an_output_that_is_there_is_not_touched(tmp_path: Path, memory: str) -> None:
    uploaded(tmp_path, memory)
    fsspec.filesystem("memory").pipe_file("/models/out/mine", b"mine")
    for options in ([], ["--overwrite"], ["--resume"]):
        result = call("run", "rtn", f"{memory}/in", "-o", f"{memory}/out", *options)
        assert result.exit_code == 2
        assert f"{memory}/out: exists already, and a store cannot replace a folder at once" in result.stderr
    assert stored(f"{memory}/out") == {"mine": b"mine"}


def test_an_upload_that_fails_leaves_nothing_and_can_be_resumed(
    tmp_path: Path, memory: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = uploaded(tmp_path, memory)
    kind = type(fsspec.filesystem("memory"))
    put = kind.put_file

    def failing(self: Any, source: str, to: str, **rest: Any) -> None:
        if to.endswith("tokenizer.json"):
            raise OSError("the store is full")
        put(self, source, to, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "put_file", failing)
        result = call("run", "rtn", f"{memory}/in", "-o", f"{memory}/out")
    assert result.exit_code == 1
    assert f"{memory}/out: cannot be written (the store is full); the same command with --resume" in result.stderr
    assert stored(f"{memory}/out") == {}
    monkeypatch.setattr("onnx_tailor.weights.tasks.Task.carry_out", None)  # all is done already
    assert call("run", "rtn", f"{memory}/in", "-o", f"{memory}/out", "--resume").exit_code == 0
    assert stored(f"{memory}/out") == expected
    assert list(here.iterdir()) == []


def test_an_upload_that_is_killed_is_found_and_done_again(tmp_path: Path, bucket: str, here: Path) -> None:
    expected = uploaded(tmp_path, bucket)
    code = (
        "import time\nfrom onnx_tailor.remote import output\nupload = output._upload\n"
        "from onnx_tailor.weights import view\nview.TILE_BYTES, view._MIN_SEGMENT = 16384, 16\n"
        "output._upload = lambda *a: (upload(*a), print('uploaded', flush=True), time.sleep(60))\n"
        "from onnx_tailor.cli import main\nmain()\n"
    )
    command = [sys.executable, "-c", code, "run", "rtn", f"{bucket}/in", "-o", f"{bucket}/out"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "uploaded\n"
    process.kill()
    process.communicate()
    assert len(stored(f"{bucket}/out")) == 1
    assert "tailor-report.json" not in stored(f"{bucket}/out")
    assert call("run", "rtn", f"{bucket}/in", "-o", f"{bucket}/out", "--resume").exit_code == 0
    assert stored(f"{bucket}/out") == expected
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("memory://models/absent", "memory://models/absent: there is no such file"),
        ("memory://models/bad", "memory://models/bad/model.onnx: not an ONNX model"),
        ("nosuch://models/in", "nosuch://models/in: is no address of a store"),
        ("memory://models/in/other.onnx", "memory://models/in/other.onnx: "),
    ],
)
def test_a_model_that_is_not_there(tmp_path: Path, memory: str, model: str, said: str) -> None:
    uploaded(tmp_path, memory)
    fsspec.filesystem("memory").pipe_file("/models/bad/model.onnx", b"bad")
    result = call("run", "rtn", model, "-o", tmp_path / "out")
    assert result.exit_code in {1, 2}
    assert result.stderr.startswith(f"error: {said}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_a_file_that_changes_during_the_run_is_an_error(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    from onnx_tailor.weights import journal

    uploaded(tmp_path, memory)
    note, files = journal.Journal.note, fsspec.filesystem("memory")

    def changing(self: journal.Journal, task: int, record: journal.Record) -> None:
        if task == 5 and content is None:
            files.rm_file("/models/in/model.onnx.data")
        elif task == 5:
            time.sleep(0.01)
            files.pipe_file("/models/in/model.onnx.data", content)
        note(self, task, record)

    monkeypatch.setattr(journal.Journal, "note", changing)
    result = call("run", "rtn", f"{memory}/in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{memory}/in/model.onnx.data: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_only_files_beside_the_model_are_read(tmp_path: Path, memory: str) -> None:
    uploaded(tmp_path, memory)
    fsspec.filesystem("memory").pipe_file("/models/secret", bytes(1 << 20))
    model = handmade.onnx.load(tmp_path / "in" / "model.onnx", load_external_data=False)
    handmade.refer(model.graph.initializer[0], location="../secret", offset=0, length=512 * 256 * 4)
    fsspec.filesystem("memory").pipe_file("/models/in/model.onnx", model.SerializeToString())
    result = call("run", "rtn", f"{memory}/in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "is not inside the model's folder" in result.stderr


def test_a_run_that_needs_the_model_here_says_so(tmp_path: Path, memory: str) -> None:
    uploaded(tmp_path, memory)
    result = call("run", "imatrix", f"{memory}/in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "run `onnx-tailor calibrate` on a copy, and give `calibration: FILE`" in result.stderr
    result = call("run", "rtn", f"{memory}/in", "-o", tmp_path / "out", "--verify")
    assert result.exit_code == 2
    assert "must be on this machine" in result.stderr


@pytest.mark.parametrize("text", ["model.onnx", "/a/b", "C:\\models", "c:/models", "in//model", "//server/share"])
def test_paths_are_paths(text: str) -> None:
    assert place(text) == Path(text)


def test_addresses_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place("s3://bucket/in/") == Url("s3://bucket/in")
    assert place("gs://bucket/in") == Url("gs://bucket/in")


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    for name in [
        name for name in sys.modules if name.startswith("onnx_tailor.remote.") and name != "onnx_tailor.remote.source"
    ]:
        monkeypatch.delitem(sys.modules, name)
    result = call("run", "rtn", "s3://bucket/in", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "needs fsspec; install onnx-tailor[cluster]" in result.stderr
    result = call("run", "rtn", handmade.decoder(tmp_path / "m" / "model.onnx"), "-o", "s3://bucket/out")
    assert result.exit_code == 2
    assert "needs fsspec; install onnx-tailor[cluster]" in result.stderr
