"""Nothing is lost: whatever ends a run, OUT is absent or as it was, and --resume gives the same bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import handmade
import numpy as np
import pytest
from blake3 import blake3
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app
from onnx_tailor.weights import journal, view
from onnx_tailor.weights.quantize_job import QuantizeJob


@pytest.fixture(autouse=True)
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "TILE_BYTES", 4096)
    monkeypatch.setattr(view, "_MIN_SEGMENT", 16)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return handmade.decoder(tmp_path / "in" / "model.onnx")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def clean(model: Path, recipe: str = "rtn") -> dict[str, bytes]:
    """Return what a run that nothing disturbs writes."""
    out = model.parent.parent / "clean" / "out"
    result = call("run", recipe, model, "-o", out)
    assert result.exit_code == 0, result.output
    return handmade.contents(out)


def failing_after(monkeypatch: pytest.MonkeyPatch, tasks: int, error: BaseException) -> None:
    """Let a run fail when it has finished so many tasks."""
    note, count = journal.Journal.note, [0]

    def failing(self: journal.Journal, task: int, record: journal.Record) -> None:
        if count[0] == tasks:
            raise error
        count[0] += 1
        note(self, task, record)

    monkeypatch.setattr(journal.Journal, "note", failing)


FAILURES = [
    (KeyboardInterrupt(), 130, "interrupted; "),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; "),
    (OSError(errno.EIO, "Input/output error"), 1, "Input/output error; "),
]


@pytest.mark.parametrize(("error", "status", "said"), FAILURES)
@pytest.mark.parametrize("there", [False, True])
def test_what_interrupts_a_run_leaves_the_output_and_can_be_resumed(
    tmp_path: Path, model: Path, error: BaseException, status: int, said: str, *, there: bool
) -> None:
    expected, before, out = clean(model), handmade.contents(model.parent), tmp_path / "out"
    if there:
        out.mkdir()
        (out / "mine").write_bytes(b"mine")
    with pytest.MonkeyPatch.context() as patch:
        failing_after(patch, 5, error)
        result = call("run", "rtn", model, "-o", out, "--overwrite")
    assert result.exit_code == status, result.output
    state = "is as it was" if there else "was not written"
    assert result.stderr == f"error: {said}{out} {state}; the same command with --resume goes on where it stopped\n"
    assert handmade.contents(out) == ({"mine": b"mine"} if there else {})
    assert out.exists() == there
    with Counting() as tiles:
        resumed = call("run", "rtn", model, "-o", out, "--overwrite", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert handmade.contents(out) == expected
    assert 0 < len(tiles) < counted(model, tmp_path)
    assert handmade.contents(model.parent) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again", "clean", "in", "out"]


class Counting:
    """Collects the tiles that are quantized."""

    def __init__(self) -> None:
        self.tiles: list[tuple[int, int]] = []
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> list[tuple[int, int]]:
        compute = QuantizeJob.compute

        def noted(job: QuantizeJob, tile: tuple[int, int], wanted: frozenset[str]) -> Any:
            self.tiles.append(tile)
            return compute(job, tile, wanted)

        self.patch.setattr(QuantizeJob, "compute", noted)
        return self.tiles

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def counted(model: Path, folder: Path) -> int:
    with Counting() as tiles:
        assert call("run", "rtn", model, "-o", folder / "again").exit_code == 0
    return len(tiles)


def test_bytes_that_changed_since_are_computed_again(tmp_path: Path, model: Path) -> None:
    """As after a loss of power, when the journal reached the disk and the weights did not."""
    expected, out = clean(model), tmp_path / "out"
    interrupted(model, out)
    (data,) = (tmp_path / ".out.onnx-tailor" / "new").glob("*.data")
    data.write_bytes(bytes(data.stat().st_size))
    assert call("run", "rtn", model, "-o", out, "--resume").exit_code == 0
    assert handmade.contents(out) == expected


def test_a_journal_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path, model: Path) -> None:
    expected, out = clean(model), tmp_path / "out"
    interrupted(model, out)
    path = tmp_path / ".out.onnx-tailor" / "journal"
    path.write_bytes(path.read_bytes()[:-9])
    interrupted(model, out, 2, "--resume")
    assert call("run", "rtn", model, "-o", out, "--resume").exit_code == 0
    assert handmade.contents(out) == expected


def interrupted(model: Path, out: Path, tasks: int = 5, *options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failing_after(patch, tasks, KeyboardInterrupt())
        assert call("run", "rtn", model, "-o", out, *options).exit_code == 130


def _touch(model: Path) -> None:
    os.utime(model.with_name("model.onnx.data"), ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (_touch, [], "another inputs"),
        (lambda _: None, ["--set", "quantize.bits=8"], "another settings"),
        (lambda _: None, ["--target", "cuda"], "another target"),
        (lambda _: None, ["--max-shard-size", "4kB"], "another output"),
    ],
)
def test_another_run_is_not_resumed(
    tmp_path: Path, model: Path, change: Callable[[Path], None], options: list[str], said: str
) -> None:
    out = tmp_path / "out"
    interrupted(model, out)
    left = handmade.contents(tmp_path / ".out.onnx-tailor")
    change(model)
    result = call("run", "rtn", model, "-o", out, "--resume", *options)
    assert result.exit_code == 2
    assert f"cannot be resumed: it had {said}" in result.stderr
    assert not out.exists()
    assert handmade.contents(tmp_path / ".out.onnx-tailor").keys() <= left.keys()
    assert call("run", "rtn", model, "-o", out, *options).exit_code == 0
    assert not (tmp_path / ".out.onnx-tailor").exists()


def test_resume_with_nothing_to_resume_starts_anew(tmp_path: Path, model: Path) -> None:
    assert call("run", "rtn", model, "-o", tmp_path / "out", "--resume").exit_code == 0
    assert handmade.contents(tmp_path / "out") == clean(model)


def test_leftovers_of_a_dead_run_are_removed(tmp_path: Path, model: Path) -> None:
    work = tmp_path / ".out.onnx-tailor"
    (work / "new").mkdir(parents=True)
    (work / "new" / "model.onnx.data").write_bytes(bytes(1 << 20))
    (work / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": 0}))
    assert call("run", "rtn", model, "-o", tmp_path / "out").exit_code == 0
    assert handmade.contents(tmp_path / "out") == clean(model)
    assert not work.exists()


def test_an_output_that_was_being_replaced_is_put_back(tmp_path: Path, model: Path) -> None:
    old = tmp_path / ".out.onnx-tailor" / "old"
    old.mkdir(parents=True)
    (old / "mine").write_bytes(b"mine")
    result = call("run", "rtn", model, "-o", tmp_path / "out", "--resume", "--set", "quantize.bits=7")
    assert result.exit_code == 2
    failing = call("run", "rtn", model, "-o", tmp_path / "out", "--max-shard-size", "1kB")
    assert failing.exit_code == 2
    with pytest.MonkeyPatch.context() as patch:
        failing_after(patch, 0, KeyboardInterrupt())
        assert call("run", "rtn", model, "-o", tmp_path / "out").exit_code == 130
    assert handmade.contents(tmp_path / "out") == {"mine": b"mine"}


def test_a_folder_that_appears_meanwhile_is_left_as_it_is(tmp_path: Path, model: Path) -> None:
    out, note = tmp_path / "out", journal.Journal.note

    def appears(self: journal.Journal, task: int, record: journal.Record) -> None:
        out.mkdir(exist_ok=True)
        (out / "precious.txt").write_text("mine")
        note(self, task, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "note", appears)
        result = call("run", "rtn", model, "-o", out)
    assert result.exit_code == 1
    assert "was not there when the run began, and is left as it is" in result.stderr
    assert [file.name for file in out.iterdir()] == ["precious.txt"]
    shutil.rmtree(out)
    assert call("run", "rtn", model, "-o", out, "--resume").exit_code == 0
    assert handmade.contents(out) == clean(model)


def test_where_blocks_on_the_disk_are_not_told(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    interrupted(model, tmp_path / "out")
    told = [name for name in dir(os.stat_result) if name.startswith("st_") and name != "st_blocks"]
    stat = Path.stat

    def without(self: Path, *, follow_symlinks: bool = True) -> Any:
        found = stat(self, follow_symlinks=follow_symlinks)
        here = ".out.onnx-tailor" in self.parts and self.suffix == ".data"
        return SimpleNamespace(**{name: getattr(found, name) for name in told}) if here else found

    monkeypatch.setattr(Path, "stat", without)
    assert call("run", "rtn", model, "-o", tmp_path / "out", "--resume").exit_code == 0
    assert handmade.contents(tmp_path / "out") == clean(model)


def test_a_living_run_refuses_the_second(tmp_path: Path, model: Path) -> None:
    process = slow_run(model, tmp_path / "out")
    try:
        result = call("run", "rtn", model, "-o", tmp_path / "out")
        assert result.exit_code == 1
        assert f"process {process.pid} on " in result.stderr
        assert "is writing there; wait for its end, or choose another folder" in result.stderr
        assert result.stderr.count("\n") == 1
    finally:
        process.kill()
        process.wait()
    assert call("run", "rtn", model, "-o", tmp_path / "out").exit_code == 0


def slow_run(model: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """Start a run that takes some seconds, and return when it has written something."""
    code = (
        "import sys, time\n"
        "from onnx_tailor.weights import journal, view\n"
        "view.TILE_BYTES, view._MIN_SEGMENT, note = 4096, 16, journal.Journal.note\n"
        "journal.Journal.note = lambda *a: (note(*a), time.sleep(0.2))\n"
        "from onnx_tailor.cli import main\n"
        "main()\n"
    )
    arguments = [sys.executable, "-c", code, "run", "rtn", str(model), "-o", str(out), *options]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    notes, end = out.parent / f".{out.name}.onnx-tailor" / "journal", time.monotonic() + 60
    while not (notes.exists() and notes.read_bytes().count(b"\n") > 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_leaves_what_can_be_resumed(tmp_path: Path, model: Path, sent: signal.Signals, status: int) -> None:
    out = tmp_path / "out"
    process = slow_run(model, out)
    process.send_signal(sent)
    _, said = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in said
    if sent != signal.SIGKILL:
        assert said.endswith("the same command with --resume goes on where it stopped\n")
    assert not out.exists()
    assert call("run", "rtn", model, "-o", out, "--resume").exit_code == 0
    assert handmade.contents(out) == clean(model)
    assert not (tmp_path / ".out.onnx-tailor").exists()


def test_a_write_that_fails_names_the_file_and_leaves_nothing(tmp_path: Path, model: Path) -> None:
    """The limit is the operating system's own, on the size of any file."""
    code = (
        "import resource, sys; from onnx_tailor.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); main()"
    )
    arguments = [sys.executable, "-c", code, "run", "tie", str(model), "-o", str(tmp_path / "out")]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in"]


def test_too_little_disk_is_said_before_the_first_byte(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    monkeypatch.setattr(QuantizeJob, "compute", None)
    result = call("run", "rtn", model, "-o", tmp_path / "sub" / "out")
    assert result.exit_code == 1
    assert "but the disk has 1,000,000 left; make room, or write to another disk" in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in"]


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _cut(path: Path) -> None:
    os.truncate(path, 100)


def _replace(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("change", [_grow, _cut, _replace, Path.unlink])
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
@pytest.mark.parametrize("tasks", [0, 5, 10_000])
def test_an_input_that_changes_during_the_run_is_an_error(
    tmp_path: Path, model: Path, change: Callable[[Path], None], name: str, tasks: int
) -> None:
    expected = (tmp_path / "in" / name, tasks)

    def changing(self: journal.Journal, task: int, record: journal.Record) -> None:
        if task == expected[1] or (expected[1] == 10_000 and task == 0):
            change(expected[0])
        original(self, task, record)

    original = journal.Journal.note
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "note", changing)
        result = call("run", "rtn", model, "-o", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert name in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.onnx-tailor").exists()


def test_the_report_tells_the_files_and_check_proves_them(tmp_path: Path, model: Path) -> None:
    (model.parent / "tokenizer.json").write_text("{}")
    out = tmp_path / "out"
    assert call("run", "rtn", model, "-o", out).exit_code == 0
    report = json.loads((out / "tailor-report.json").read_text())
    for file in report["inputs"]:
        content = (model.parent / file["name"]).read_bytes()
        assert (file["bytes"], file["blake3"]) == (len(content), blake3(content).hexdigest())
    for file in report["outputs"]:
        content = (out / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert [file["name"] for file in report["inputs"]] == ["model.onnx", "model.onnx.data", "tokenizer.json"]
    assert {file["name"] for file in report["outputs"]} | {"tailor-report.json"} == set(handmade.contents(out))
    assert report["recipe_text"].startswith("# 4 bits")
    assert str(tmp_path) not in json.dumps(report)
    assert call("check", out).exit_code == 0

    (out / "notes.txt").write_text("mine")
    checked = json.loads(call("check", out, "--json").stdout)
    assert (checked["whole"], checked["unknown"], len(checked["equal"])) == (True, ["notes.txt"], 3)
    with (out / "model.onnx.data").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    (out / "tokenizer.json").unlink()
    result = call("check", out, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["missing"], found["different"]) == (["tokenizer.json"], ["model.onnx.data"])
    assert "not the bytes that were written: model.onnx.data" in call("check", out).stdout


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{}",
        '{"outputs": 5}',
        '{"outputs": [{}]}',
        '{"outputs": [{"name": "../../etc/passwd", "bytes": 1, "sha256": ""}]}',
        "[" * 100_000,
    ],
)
def test_a_report_that_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tailor-report.json").write_text(text)
    result = call("check", tmp_path)
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")


def test_two_runs_write_the_same_bytes_wherever_they_write(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model.parent, tmp_path / "elsewhere" / "in")
    assert call("run", "rtn", tmp_path / "elsewhere" / "in" / "model.onnx", "-o", tmp_path / "other").exit_code == 0
    assert handmade.contents(tmp_path / "other") == clean(model)


def resumed_after(tasks: int, model: Path, recipe: str) -> Path:
    """Interrupt a run after so many tasks, see that resuming it does the rest and writes the same; return where."""
    expected, out = clean(model, recipe), model.parent.parent / "out"
    with Counting() as whole:
        assert call("run", recipe, model, "-o", out.with_name("again")).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        failing_after(patch, tasks, KeyboardInterrupt())
        assert call("run", recipe, model, "-o", out).exit_code == 130
    with Counting() as rest:
        resumed = call("run", recipe, model, "-o", out, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert handmade.contents(out) == expected
    assert 0 < len(rest) < len(whole)
    return out


@pytest.mark.parametrize("method", ["gptq", "imatrix"])
def test_a_run_that_calibrates_itself_goes_on_where_it_was(model: Path, method: str) -> None:
    """It calibrates again, and finds the same: what was written counts."""
    resumed_after(5, model, method)


def test_a_run_that_follows_the_quantized_model_goes_on_where_it_was(tmp_path: Path) -> None:
    """It follows again, and finds the same drift, though its files lie in another place."""
    model = handmade.decoder(tmp_path / "in" / "model.onnx", columns=128)
    tokens, known, gptaq = tmp_path / "tokens.npy", tmp_path / "c.npz", tmp_path / "gptaq.yaml"
    np.save(tokens, np.random.default_rng(0).integers(0, handmade.VOCABULARY, (8, 32)))
    assert call("calibrate", model, "--tokens", tokens, "--hessians", "-o", known).exit_code == 0
    gptaq.write_text("recipe: 1\npasses:\n  - quantize: {method: gptaq, calibration: c.npz, block_size: 32}\n")
    out = resumed_after(30, model, str(gptaq))
    made = json.loads((out / "tailor-report.json").read_text())["passes"][0]["changes"]
    assert "gptaq" in {change["details"]["method"] for change in made}
