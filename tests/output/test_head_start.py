"""A run begins to hash its model before it is loaded; what changes until then is hashed anew."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from blake3 import blake3
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app
from onnx_tailor.errors import ModelError
from onnx_tailor.output import head_start
from onnx_tailor.output.digests import Digests
from onnx_tailor.output.head_start import HeadStart
from onnx_tailor.weights.digest import Hashing
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.threads import Threads

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
CONTENT = bytes(range(256)) * 50_000  # several blocks


class _NeverHashes(Threads):
    def blake3(self, file: DataFile, advance: Callable[[int], None]) -> str:
        raise ModelError(f"{file.path}: hashed anew")


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(each) for each in arguments])


def begun(model: Path) -> dict[Path, Hashing]:
    """Return what a head start leaves when it is through."""
    with HeadStart(model) as ahead:
        ahead._thread.join()
        return ahead.leave()


def digest_of(path: Path, ahead: Mapping[Path, Hashing], executor: Threads) -> str:
    with Digests(executor) as digests:
        digests.take_over(ahead)
        digests.begin([DataFile.open(path)])
        (found,) = digests.of([path])
    assert (found.name, found.bytes) == (path.name, path.stat().st_size)
    return found.blake3


class _Endless(Hashing):
    """A file that takes for ever; `waited` holds those that nobody broke off."""

    waited: ClassVar[list[_Endless]] = []

    def finish(self, advance: Callable[[int], None] = lambda _: None) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            advance(0)
        self.waited.append(self)
        return ""


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file's hashing ends by itself."""
    monkeypatch.setattr(head_start, "Hashing", _Endless)
    _Endless.waited.clear()
    yield
    assert not _Endless.waited
    assert not any(thread.name == "head start" for thread in threading.enumerate())


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that head starts begin with."""
    names: list[str] = []

    def noted(path: Path) -> Hashing:
        names.append(path.name)
        return Hashing(path)

    monkeypatch.setattr(head_start, "Hashing", noted)
    return names


def test_what_was_hashed_ahead_is_not_hashed_again(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(CONTENT)
    assert digest_of(model, begun(model), _NeverHashes()) == blake3(CONTENT).hexdigest()


def test_what_was_broken_off_is_gone_on_with(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(CONTENT)
    hashing = Hashing(model)

    def break_off(_: int) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            hashing.finish(break_off)
    assert digest_of(model, {model: hashing}, _NeverHashes()) == blake3(CONTENT).hexdigest()


def test_a_file_replaced_before_it_is_loaded_is_hashed_anew(tmp_path: Path) -> None:
    model, other = tmp_path / "model.onnx", tmp_path / "other"
    model.write_bytes(CONTENT)
    ahead = begun(model)
    other.write_bytes(CONTENT[::-1])
    status = model.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(model)
    assert digest_of(model, ahead, Threads()) == blake3(CONTENT[::-1]).hexdigest()


def test_a_file_changed_in_place_before_it_is_loaded_is_hashed_anew(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(CONTENT)
    os.utime(model, ns=(0, 0))
    ahead = begun(model)
    with model.open("r+b") as file:
        file.write(b"x")
    assert digest_of(model, ahead, Threads()) == blake3(b"x" + CONTENT[1:]).hexdigest()


def test_a_model_and_the_files_that_belong_to_it_by_their_names(tmp_path: Path) -> None:
    names = ["model.onnx", "model.onnx.data", "model.onnx_data_1", "model_q4.onnx", "weights.data", "notes.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in begun(tmp_path / "model.onnx")] == names[:3]
    assert sorted(path.name for path in begun(tmp_path)) == names[:5]
    assert begun(tmp_path / "none.onnx") == begun(tmp_path / "none" / "none.onnx") == {}


def test_a_file_that_does_not_belong_is_dropped(tmp_path: Path) -> None:
    model, stray = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    for path in (model, stray):
        path.write_bytes(CONTENT)
    ahead = begun(model)
    assert set(ahead) == {model, stray}
    with Digests(_NeverHashes()) as digests:
        digests.take_over(ahead)
        digests.begin([DataFile.open(model)])
        with pytest.raises(KeyError):
            digests.of([stray])


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError])
def test_an_error_does_not_wait_for_the_rest(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "model.onnx").write_bytes(CONTENT)
    with pytest.raises(error), HeadStart(tmp_path / "model.onnx"):
        raise error


@pytest.mark.usefixtures("endless")
def test_a_loaded_model_does_not_wait_for_the_rest(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(CONTENT)
    with HeadStart(tmp_path / "model.onnx") as ahead:
        assert set(ahead.leave()) <= {tmp_path / "model.onnx"}


@pytest.mark.usefixtures("endless")
def test_a_mistake_in_the_recipe_does_not_wait_for_the_model(tmp_path: Path) -> None:
    result = call("run", "no-such-recipe", EXAMPLE / "model.onnx", "-o", tmp_path / "out")
    assert (result.exit_code, "no-such-recipe" in result.stderr) == (2, True)


def test_the_command_begins_with_the_model(hashed: list[str], tmp_path: Path) -> None:
    result = call("run", "tie", EXAMPLE / "model.onnx", "-o", tmp_path / "out", "--json")
    told = {file["name"]: file["blake3"] for file in json.loads(result.stdout)["inputs"]}
    assert hashed[0] == "model.onnx"
    assert {"model.onnx", "model.onnx.data"} <= set(told)
    assert told == {name: blake3((EXAMPLE / name).read_bytes()).hexdigest() for name in told}


@pytest.mark.parametrize("options", [("--dry-run",), ("-o", "out", "--executor", "elsewhere")])
def test_a_dry_run_and_another_executor_need_none(hashed: list[str], options: tuple[str, ...]) -> None:
    call("run", "tie", EXAMPLE / "model.onnx", *options)
    assert hashed == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no FIFO in a folder")
def test_a_fifo_is_refused_as_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    result = call("run", "tie", tmp_path / "model.onnx", "-o", tmp_path / "out")
    assert (result.exit_code, "model.onnx: is no ordinary file" in result.stderr) == (1, True)
