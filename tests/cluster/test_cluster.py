"""The workers of a cluster write what threads write, and nothing is lost when one of them, or the run, dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import handmade
import pytest
from blake3 import blake3
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app
from onnx_tailor.cluster import parcels
from onnx_tailor.errors import ModelError
from onnx_tailor.quant import quantize
from onnx_tailor.weights import quantize_job, view
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.journal import Record
from onnx_tailor.weights.tasks import Put, Task

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
from onnx_tailor.cluster import executor  # noqa: E402

SLOW = """
import time
from onnx_tailor.weights import tasks
tasks.Task.quick = getattr(tasks.Task, "quick", tasks.Task.carry_out)
def slow(task, put):
    time.sleep(0.02)
    return task.quick(put)
tasks.Task.carry_out = slow
"""
QUICK = """
from onnx_tailor.weights import tasks
tasks.Task.carry_out = getattr(tasks.Task, "quick", tasks.Task.carry_out)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers, each a process with one thread; a nanny starts another where one dies."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as started:
        yield started


@pytest.fixture
def where(cluster: Any) -> str:
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2)
        client.run(exec, QUICK, {})
    return cluster.scheduler_address.replace("tcp://", "dask://")


@pytest.fixture(autouse=True)
def many_parcels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "TILE_BYTES", 16384)
    monkeypatch.setattr(view, "_MIN_SEGMENT", 16)
    monkeypatch.setattr(parcels, "PARCEL_BYTES", 65536)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with no quantized weight so small that it lies in the graph, which this process computes itself."""
    return handmade.decoder(tmp_path / "in" / "model.onnx", rows=512, columns=256)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def local(model: Path, *options: object) -> dict[str, bytes]:
    out = model.parent.parent / "local"
    result = call("run", *(options or ["rtn"]), model, "-o", out)
    assert result.exit_code == 0, result.output
    return handmade.contents(out)


def computed_here(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Collect the shapes of the tiles that this process quantizes."""
    shapes = []

    def noted(values: Any, *rest: Any) -> Any:
        shapes.append(values.shape)
        return quantize(values, *rest)

    monkeypatch.setattr(quantize_job, "quantize", noted)
    return shapes


@pytest.mark.parametrize("recipe", ["rtn", "tie", "k-quant-mixed", "unpack-rtn"])
def test_workers_write_what_threads_write(
    tmp_path: Path, model: Path, where: str, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    expected, out = local(model, recipe), tmp_path / "out"
    here = computed_here(monkeypatch)
    monkeypatch.setattr(DataFile, "blake3", None)
    result = call("run", recipe, model, "-o", out, "--executor", where)
    assert result.exit_code == 0, result.output
    assert handmade.contents(out) == expected
    assert here == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "local", "out"]


@pytest.mark.parametrize(("method", "points"), [("imatrix", "integer"), ("gptq", "integer"), ("gptq", "float")])
def test_methods_with_data_do_the_same(tmp_path: Path, model: Path, where: str, method: str, points: str) -> None:
    assert call("calibrate", model, "-o", tmp_path / "c.npz", "--hessians", "--tokens", tokens(tmp_path)).exit_code == 0
    options = [method, "--set", f"quantize.calibration={tmp_path / 'c.npz'}", "--set", f"quantize.zero_points={points}"]
    expected = local(model, *options)
    result = call("run", *options, model, "-o", tmp_path / "out", "--executor", where)
    assert result.exit_code == 0, result.output
    assert handmade.contents(tmp_path / "out") == expected


def tokens(folder: Path) -> Path:
    import numpy as np

    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, handmade.VOCABULARY, 512))
    return folder / "tokens.npy"


def test_workers_that_do_not_see_the_output_send_their_bytes(
    tmp_path: Path, model: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, made, sent = local(model), parcels.parcels, []

    def elsewhere(*arguments: Any) -> Iterator[parcels.Parcel]:
        for parcel in made(*arguments):
            yield replace(parcel, folder="/not/on/this/machine")

    def accepted(delivery: parcels.Delivery, *rest: Any) -> None:
        sent.append(delivery.contents is not None)
        accept(delivery, *rest)

    accept = executor._accept
    monkeypatch.setattr(executor, "parcels", elsewhere)
    monkeypatch.setattr(executor, "_accept", accepted)
    result = call("run", "rtn", model, "-o", tmp_path / "out", "--executor", where)
    assert result.exit_code == 0, result.output
    assert handmade.contents(tmp_path / "out") == expected
    assert len(sent) > 5
    assert all(sent)


def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path, model: Path, where: str, cluster: Any) -> None:
    expected = local(model)
    with distributed.Client(cluster, set_as_default=False) as client:
        client.run(exec, SLOW, {})
        victim = next(iter(client.run(os.getpid).values()))
    run = Background(["run", "rtn", model, "-o", tmp_path / "out", "--executor", where])
    wait_for_tasks(tmp_path / "out", 3)
    os.kill(victim, signal.SIGKILL)
    result = run.result()
    assert result.exit_code == 0, result.output
    assert handmade.contents(tmp_path / "out") == expected
    with distributed.Client(cluster, set_as_default=False) as client:
        assert victim not in client.run(os.getpid).values()


class Background:
    """A command on another thread."""

    def __init__(self, arguments: list[object]) -> None:
        self._results: list[Result] = []
        self._thread = threading.Thread(target=lambda: self._results.append(call(*arguments)))
        self._thread.start()

    def result(self) -> Result:
        self._thread.join(60)
        return self._results[0]


def wait_for_tasks(out: Path, count: int) -> None:
    """Wait until a run has noted so many tasks."""
    notes, end = out.parent / f".{out.name}.onnx-tailor" / "journal", time.monotonic() + 60
    while not (notes.exists() and notes.read_bytes().count(b"\n") > count):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("resumed_by", ["threads", "cluster"])
def test_a_run_that_is_killed_can_be_resumed(
    tmp_path: Path, model: Path, where: str, cluster: Any, monkeypatch: pytest.MonkeyPatch, resumed_by: str
) -> None:
    expected, out = local(model), tmp_path / "out"
    with distributed.Client(cluster, set_as_default=False) as client:
        client.run(exec, SLOW, {})
    code = (
        "from onnx_tailor.weights import view\nfrom onnx_tailor.cluster import parcels\n"
        "view.TILE_BYTES, view._MIN_SEGMENT, parcels.PARCEL_BYTES = 16384, 16, 65536\n"
        "from onnx_tailor.cli import main\nmain()\n"
    )
    arguments = [sys.executable, "-c", code, "run", "rtn", str(model), "-o", str(out), "--executor", where]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for_tasks(out, 5)
    process.kill()
    process.communicate()
    assert not out.exists()
    known = (tmp_path / ".out.onnx-tailor" / "journal").read_bytes().count(b"\n") - 1
    here = computed_here(monkeypatch)
    result = call(
        "run", "rtn", model, "-o", out, "--resume", "--executor", where if resumed_by == "cluster" else "threads"
    )
    assert result.exit_code == 0, result.output
    assert handmade.contents(out) == expected
    assert known >= 5
    assert bool(here) == (resumed_by == "threads")


def test_a_late_worker_of_a_dead_run_cannot_write_into_the_next(tmp_path: Path, model: Path) -> None:
    from onnx_tailor.cluster import worker

    folder = tmp_path / "work" / "new"
    folder.mkdir(parents=True)
    late = parcels.Parcel((), str(folder), str(folder.parent / "token"), "of the run before", worker.build())
    (folder.parent / "token").write_text("of this run")
    assert worker.deliver(late, "w").contents == ()
    (folder.parent / "token").write_text("of the run before")
    assert worker.deliver(late, "w").contents is None


def test_other_code_on_a_worker_is_an_error(
    tmp_path: Path, model: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "build_name", lambda: "0.0-other")
    result = call("run", "rtn", model, "-o", tmp_path / "out", "--executor", where)
    assert result.exit_code == 1
    assert "this process 0.0-other; install the same everywhere" in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in"]


def test_what_a_worker_finds_wrong_is_said_in_one_sentence(tmp_path: Path, model: Path, where: str) -> None:
    import numpy as np

    data = np.fromfile(model.parent / "model.onnx.data", np.float32)
    data[-5] = np.nan
    data.tofile(model.parent / "model.onnx.data")
    result = call("run", "rtn", model, "-o", tmp_path / "out", "--executor", where)
    assert result.exit_code == 1
    assert "holds nan at row" in result.stderr
    assert "(said by the worker tcp://" in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in"]


def test_what_no_worker_can_hash_is_hashed_here(tmp_path: Path) -> None:
    class Lost:
        status = "running"

        def submit(self, *_: Any, **__: Any) -> Any:
            return self

        def result(self, timeout: float) -> Any:
            raise ModelError("every worker must see the file")

        def cancel(self) -> None:
            self.status = "cancelled"

    (tmp_path / "weights").write_bytes(b"abc")
    client = Lost()
    found = executor.Cluster(client, "here:1").blake3(DataFile.open(tmp_path / "weights"), lambda _: None)
    assert found == blake3(b"abc").hexdigest()
    assert client.status == "cancelled"


def test_no_cluster(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "CONNECT", 0.5)
    result = call("run", "rtn", model, "-o", tmp_path / "out", "--executor", "dask://127.0.0.1:9")
    assert result.exit_code == 1
    assert "dask://127.0.0.1:9: no scheduler answers there; start one with `dask scheduler`" in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ends", "said"),
    [("workers", "there has been no worker for 1 s"), ("scheduler", "the connection to the scheduler is lost")],
)
def test_a_cluster_that_ends_midway_leaves_what_can_be_resumed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, ends: str, said: str
) -> None:
    expected, out, carry_out = local(model), tmp_path / "out", Task.carry_out
    monkeypatch.setattr(executor, "PATIENCE", 1.0)
    monkeypatch.setattr(executor, "_GLANCE", 0.2)

    def slow(task: Task, put: Put) -> Record:
        time.sleep(0.1)
        return carry_out(task, put)

    with (
        pytest.MonkeyPatch.context() as patch,
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=":0"
        ) as started,
    ):
        patch.setattr(Task, "carry_out", slow)
        where = started.scheduler_address.replace("tcp://", "dask://")
        run = Background(["run", "rtn", model, "-o", out, "--executor", where])
        wait_for_tasks(out, 3)
        if ends == "workers":
            started.scale(0)
        else:
            started.close()
        result = run.result()
    assert result.exit_code == 1, result.output
    assert f"{where}: {said}; the same command with --resume goes on where it stopped" in result.stderr
    assert not out.exists()
    assert call("run", "rtn", model, "-o", out, "--resume").exit_code == 0
    assert handmade.contents(out) == expected
