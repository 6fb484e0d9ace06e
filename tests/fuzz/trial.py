"""One mutated file through the commands, held to what docs/guarantees.md promises."""

from __future__ import annotations

import os
import random
import re
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fuzz_seeds
import handmade
import mutate_model
import mutate_recipe
import numpy as np

SECRET = b"this is a secret of another folder, and no model may hold it " * 64
EXACT = ("tie",)
"""Recipes after which a model computes what it computed before."""
SYSTEM = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/usr/lib/os-release")
"""What libraries read about the machine."""
SLOW = ("best", "gptq", "imatrix")


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    kind: str
    """What is counted: how it was changed, and whether it was read, or why it was refused."""
    finding: str = ""
    """How a promise was broken; "" where all were kept."""
    content: bytes = b""
    """The file."""


class BrokenPromiseError(Exception):
    """A promise was broken."""


def try_file(number: int, chosen: str = "both") -> Outcome:
    """Mutate and try the file of this number: a recipe every eighth time, otherwise a model."""
    dice = random.Random(number)
    if chosen == "recipe" or (chosen == "both" and number % 8 == 0):
        return try_recipe(mutate_recipe.mutated(dice))
    way, seed = mutate_model.mutated(dice)
    return try_model(way, seed, dice)


def try_model(way: str, seed: fuzz_seeds.Seed, dice: random.Random) -> Outcome:
    """Inspect, lint and run a model; now and then through the command line."""
    from onnx_tailor import pipeline, recipes
    from onnx_tailor.lint.rules import lint
    from onnx_tailor.targets import TARGETS

    # Those that run the model on a text take a hundred times as long.
    names = [each for each in recipes.names() if each not in SLOW or dice.random() < 0.02]
    name, target = dice.choice(names), dice.choice(list(TARGETS))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        folder, out = Path(scratch) / "in", Path(scratch) / "out"
        folder.mkdir()
        (Path(scratch) / "secret").write_bytes(SECRET)
        mutate_model.write(seed, folder, dice)
        model, before = folder / "model.onnx", _contents(folder)
        dry, typed, all_of_them = dice.random() < 0.3, dice.random() < 0.005, dice.random() < 0.1
        commands: list[Callable[[], Any]] = [
            lambda: pipeline.inspect(model).to_json(),
            lambda: lint(model, target).to_json(),
            lambda: pipeline.run(_shipped(name), model, None if dry else out, target=target, dry_run=dry),
        ]
        if typed:
            ends = [["inspect", str(model)], ["lint", str(model), "--target", target]]
            ends.append(["run", name, str(model), "-o", str(out), "--target", target])
            commands = [lambda end=end: _command(end) for end in ends]
        said: list[str] = []
        try:
            with guarded(folder, Path(scratch)):
                for each in commands:
                    if not any(said) or all_of_them:  # they refuse a file alike
                        said.append(refusal(each))
            _check_output(out, said[-1], folder, before)
            if not any(said) and not dry and name in EXACT:
                _compare(model, out / "model.onnx")
        except BrokenPromiseError as broken:
            return Outcome(f"{way}: finding", f"{seed.name}, {name}, {target}: {broken}", seed.model)
    why = next((each for each in said if each), "")
    return Outcome(f"{way}: {f'refused: {_general(why, scratch)}' if why else 'read'}")


@cache
def _shipped(name: str) -> Any:
    from onnx_tailor import recipe

    return recipe.load(name)


def try_recipe(content: bytes) -> Outcome:
    """Read a recipe, and where it is one, run it dry on a sound model."""
    from onnx_tailor import pipeline, recipe

    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        file = Path(scratch) / "r.yaml"
        file.write_bytes(content)
        model = handmade.decoder(Path(scratch) / "in" / "model.onnx", layers=1, rows=32, columns=32)
        try:
            with guarded(Path(scratch), Path(scratch)):
                why = refusal(lambda: recipe.load(str(file)), lines=10_000)
                dry = why or refusal(lambda: pipeline.run(recipe.load(str(file)), model, None, dry_run=True))
        except BrokenPromiseError as broken:
            return Outcome("recipe: finding", str(broken), content)
    return Outcome(f"recipe: {'refused' if why else 'refused for this model' if dry else 'read'}")


def refusal(command: Callable[[], Any], lines: int = 1) -> str:
    """Return what a command refuses its input with, "" where it does its work."""
    from onnx_tailor.errors import TailorError

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # a thread's own handle ends with the thread
        try:
            command()
            said = ""
        except TailorError as error:
            said = str(error)
            if not said.strip():
                raise BrokenPromiseError("an error without a word") from error
            if said.count("\n") >= lines or len(said) > 2000 * lines:
                raise BrokenPromiseError(f"an error of many lines: {said[:300]}") from error
        except (BrokenPromiseError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise BrokenPromiseError(_traceback(error)) from error
    for each in warned:
        raise BrokenPromiseError(f"a warning: {each.filename}:{each.lineno}: {each.message}")
    return said


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))[-3000:]


def _command(arguments: list[str]) -> None:
    """Run a command line; raise what it refuses its input with."""
    from typer.testing import CliRunner

    from onnx_tailor.cli import app
    from onnx_tailor.errors import TailorError

    result = CliRunner().invoke(app, arguments)
    if result.exit_code not in {0, 1, 2} or "Traceback" in result.stderr or "internal error" in result.stderr:
        raise BrokenPromiseError(f"status {result.exit_code}: {(result.stderr or repr(result.exception))[-3000:]}")
    if result.exit_code and "error: " in result.stderr:
        raise TailorError(result.stderr.split("error: ", 1)[1].strip())
    if result.exit_code and arguments[0] != "lint":  # which tells by its status that it found something
        raise BrokenPromiseError(f"status {result.exit_code} without a word: {result.output[-300:]}")


def _check_output(out: Path, refused: str, folder: Path, before: dict[str, bytes]) -> None:
    if refused and out.exists():
        raise BrokenPromiseError("an output after a refusal")
    if out.exists() and any(SECRET[:61] in each for each in handmade.contents(out).values()):
        raise BrokenPromiseError("bytes of another folder in the output")
    if list(out.parent.glob(".out*")):
        raise BrokenPromiseError("a work folder was left")
    if _contents(folder) != before:
        raise BrokenPromiseError("the input was changed")


def _contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file() and not each.is_symlink()}


def _compare(original: Path, tailored: Path) -> None:
    """Run both in ONNX Runtime, where it takes the original at all."""
    try:
        wanted = _run(original)
    except Exception:  # the mutated model means nothing to it
        return
    try:
        found = _run(tailored)
    except Exception as error:
        raise BrokenPromiseError(f"ONNX Runtime takes the input and not the output: {error}") from error
    for name, value in wanted.items():
        if not np.allclose(value, found[name], rtol=1e-3, atol=1e-3, equal_nan=True):
            raise BrokenPromiseError(f"the output {name} is another after an exact recipe")


def _run(path: Path) -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    # Without fusions, which round differently.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {}
    for each in session.get_inputs():
        shape = [n if isinstance(n, int) and 0 < n < 64 else 2 for n in each.shape]
        kind = {"tensor(int64)": np.int64, "tensor(bool)": np.bool_, "tensor(float16)": np.float16}.get(
            each.type, np.float32
        )
        feeds[each.name] = np.ones(shape, kind)
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, (np.asarray(each, np.float64) for each in session.run(names, feeds)), strict=True))


def _general(message: str, scratch: str) -> str:
    """Return a message without what differs from file to file, to be counted."""
    text = message.replace(scratch, "")
    text = re.sub(r"'[^']*'?|\"[^\"]*\"?|\[[^]]*\]?|(weight|node|function) \S+|-?\d[\d,.]*", r"\1…", text)
    return re.sub(r"^\S+: ", "", text)[:80]


_watch: dict[str, Any] = {"roots": None, "read": []}


@contextmanager
def guarded(folder: Path, scratch: Path) -> Iterator[None]:
    """Note every file that is opened; only those of the model, the output and this installation may be."""
    if not _watch.get("installed"):
        sys.addaudithook(_note)
        _watch["installed"] = True
    _watch["roots"], _watch["read"] = _allowed(folder, scratch), []
    try:
        yield
    finally:
        _watch["roots"] = None
    if _watch["read"]:
        raise BrokenPromiseError(f"read outside the model's folder: {_watch['read'][:3]}")


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    roots = _watch["roots"]
    if roots is None or event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if not path.startswith(roots) and not os.path.isdir(path):  # noqa: PTH112 # a folder is opened to be synchronized
        _watch["read"].append(path)


def _allowed(folder: Path, scratch: Path) -> tuple[str, ...]:
    import onnx_tailor

    ours = os.path.realpath(onnx_tailor.__path__[0])
    outputs = [os.path.realpath(scratch / name) for name in ("out", ".out.onnx-tailor")]
    python = {os.path.realpath(each) for each in (sys.prefix, sys.base_prefix, *sys.path) if each}
    temporary = os.path.join(os.path.realpath(tempfile.gettempdir()), "onnx-tailor-")  # noqa: PTH118
    parent = [os.path.realpath(scratch)] if folder == scratch else []
    known = (os.path.realpath(folder), ours, *outputs, *parent, *python, temporary, *SYSTEM)
    return tuple(known)


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
