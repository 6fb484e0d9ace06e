"""The whole road: load once, run the passes, plan the storage, write, report."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from onnx_tailor import __version__
from onnx_tailor import recipe as recipes
from onnx_tailor.errors import ModelError, OptionError, UsageError
from onnx_tailor.graph import receipt
from onnx_tailor.graph.inspection import Inspection, inspect_model
from onnx_tailor.graph.load import load
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.save import data_name, save, storage_plan
from onnx_tailor.graph.size import measure
from onnx_tailor.progress import Progress, Silent
from onnx_tailor.recipe import Recipe, Step
from onnx_tailor.report import Change, PassReport, Report, Size, Skip
from onnx_tailor.targets import DEFAULT, TARGETS, Target

REPORT = "tailor-report.json"
_COMPANIONS = (
    "config.json",
    "genai_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)
"""Files beside the model that its users need, by name or pattern."""


Check = Callable[[Sequence[tuple[Path, Path]]], Sequence[Mapping[str, Any]]]


def run(
    recipe: Recipe,
    model: Path,
    out: Path | None,
    *,
    target: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    check: Check | None = None,
) -> Report:
    """Run `recipe` on the ONNX file `model`, or on every one of a folder, and write the result into folder `out`.

    `out` appears under its name only when it is whole, and when `check`, which is given the files of each model
    before and after, does not raise; what it returns stands in the report.

    Raises:
        UsageError: `out` is in the way, or the recipe does not fit this model.
        ModelError: the model cannot be read, or not rewritten as asked.
    """
    started = time.monotonic()
    chosen = TARGETS[target or recipe.target or DEFAULT]
    if not dry_run:
        out = _checked(out, model, overwrite=overwrite)
    reports: list[PassReport] = []
    sizes: list[tuple[Size, Size]] = []
    models = []
    for file in model_files(model):
        loaded = load(file)
        before = measure(loaded, _bytes_on_disk(loaded))
        reports += [_run_pass(step, loaded, chosen) for step in recipe.steps]
        sizes.append((before, measure(loaded, 0)))
        models.append(loaded)
    report = Report(
        version=__version__,
        recipe=recipe.name,
        target=chosen.name,
        model=str(model),
        out=None if out is None or dry_run else str(out),
        before=_total([b for b, _ in sizes]),
        after=_total([a for _, a in sizes]),
        passes=tuple(reports),
        files=tuple(name for m in models for name in (m.path.name, data_name(m))) if dry_run else (),
        seconds=round(time.monotonic() - started, 3),
        recipe_text=recipe.text,
        settings=recipe.settings,
    )
    if dry_run or out is None:
        return report
    return _write(models, model, out, report, started, progress or Silent(), check)


def inspect(model: Path) -> Inspection:
    """Describe the ONNX file `model`, or every one of a folder.

    Raises:
        ModelError: a file cannot be read.
    """
    files = []
    for file in model_files(model):
        loaded = load(file)
        files.append(inspect_model(loaded, _bytes_on_disk(loaded)))
    return Inspection(model, tuple(files))


def model_files(model: Path) -> list[Path]:
    """Return the ONNX files that `model` names.

    Raises:
        ModelError: there is none.
    """
    try:
        model.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a RuntimeError where links form a circle
        said = "links that form a circle" if isinstance(error, RuntimeError) else (error.strerror or str(error))
        raise ModelError(f"{model}: cannot be read ({said})") from error
    if model.is_dir():
        found = sorted(model.glob("*.onnx"))
        if not found:
            raise ModelError(f"{model}: the folder holds no .onnx file")
        return found
    return [model]


def _run_pass(step: Step, model: TailorModel, target: Target) -> PassReport:
    started = time.monotonic()
    try:
        results = [_located(result, step) for result in step.pass_.apply(model, target)]
    except OptionError as error:
        raise recipes.explain(error, step) from error
    return PassReport(
        name=step.pass_.name,
        file=model.path.name,
        changes=tuple(r for r in results if isinstance(r, Change)),
        skips=tuple(r for r in results if isinstance(r, Skip)),
        seconds=round(time.monotonic() - started, 3),
    )


def _located(result: Change | Skip, step: Step) -> Change | Skip:
    """Return the result with the place in the recipe of the option that decided, where it names one."""
    key = result.details.get("rule")
    if key is None:
        return result
    place = step.locate(tuple(key))
    return replace(result, details={**result.details, "recipe_line": f"{Path(place.file).name}:{place.line}"})


def _checked(out: Path | None, model: Path, *, overwrite: bool) -> Path:
    if out is None:
        raise UsageError("no output folder; give one with -o, or --dry-run to see the plan alone")
    resolved = out.resolve()
    for file in model_files(model):
        for source in (file.parent.resolve(), file.resolve().parent):  # two, where the file is a link
            if resolved == source or resolved in source.parents:
                raise UsageError(f"{out}: is the model's own folder, or holds it; write into another")
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir():
        raise UsageError(f"{above}: is a file; -o names a folder")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise UsageError(f"{out}: exists already; choose another folder, or give --overwrite")
    return out


def _write(
    models: list[TailorModel],
    model: Path,
    out: Path,
    report: Report,
    started: float,
    progress: Progress,
    check: Check | None,
) -> Report:
    total = sum(job.read_bytes for m in models for job in storage_plan(m).by_job())
    with _whole(out) as folder:
        progress.start("writing", total)
        files = [name for m in models for name in save(m, folder, progress, partial(_stamp, m, report))]
        progress.finish()
        files += _copy_companions(model if model.is_dir() else model.parent, folder)
        size = sum((folder / name).stat().st_size for name in files if name.endswith(_suffixes(models)))
        final = replace(
            report,
            after=replace(report.after, file_bytes=size),
            passes=tuple(done for m in models for done in receipt.with_errors(m, _passes_of(m, report))),
            files=(*files, REPORT),
            verified=tuple(check([(m.path, folder / m.path.name) for m in models])) if check else (),
            seconds=round(time.monotonic() - started, 3),
        )
        (folder / REPORT).write_text(json.dumps(final.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return final


def _stamp(model: TailorModel, report: Report) -> None:
    """Put the receipt of this run into the model's own metadata."""
    header = {
        "version": report.version,
        "recipe": report.recipe,
        "target": report.target,
        "weight_bytes": [report.before.weight_bytes, report.after.weight_bytes],
        "bits_per_weight": report.after.bits_per_weight,
    }
    receipt.stamp(model, header, _passes_of(model, report))


def _passes_of(model: TailorModel, report: Report) -> list[PassReport]:
    return [done for done in report.passes if done.file == model.path.name]


def _suffixes(models: list[TailorModel]) -> tuple[str, ...]:
    return tuple(name for m in models for name in (m.path.name, data_name(m)))


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`, which takes its name when the block ends well and vanishes otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder = work / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            out.rename(work / "old")
        try:
            folder.rename(out)
        except OSError:
            if (work / "old").exists():
                (work / "old").rename(out)
            raise
        _sync(out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Let the renaming reach the disk, where the system knows folders as files."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _copy_companions(source: Path, folder: Path) -> list[str]:
    names = {file.name for pattern in _COMPANIONS for file in source.glob(pattern) if file.is_file()}
    for name in sorted(names):
        shutil.copyfile(source / name, folder / name)
    return sorted(names)


def _bytes_on_disk(model: TailorModel) -> int:
    names = {model.path.name, *model.locations}
    return sum((model.path.parent / name).stat().st_size for name in names)


def _total(sizes: list[Size]) -> Size:
    weight = sum(s.weight_bytes for s in sizes)
    parameters = sum(s.parameters for s in sizes)
    return Size(
        weight_bytes=weight,
        file_bytes=sum(s.file_bytes for s in sizes),
        parameters=parameters,
        bits_per_weight=round(8 * weight / parameters, 4) if parameters else 0.0,
    )
