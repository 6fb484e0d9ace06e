"""The whole road: load once, run the passes, plan the storage, write, report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from onnx_tailor import __version__
from onnx_tailor.cluster.choose import THREADS, executor_of
from onnx_tailor.errors import OptionError, UsageError
from onnx_tailor.graph.file.annotations import forget_named_sizes
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.file.places import model_files
from onnx_tailor.graph.file.size import measure
from onnx_tailor.graph.meaning.heads import Head, QuantizedHead, find_heads
from onnx_tailor.graph.meaning.inspection import Inspection, inspect_model
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.output.arrangement import Client, arrange
from onnx_tailor.output.digests import Digests
from onnx_tailor.output.forecast import forecast
from onnx_tailor.output.local import LocalFolder
from onnx_tailor.output.work import Folder, working
from onnx_tailor.output.write import Check, Job, write_output
from onnx_tailor.passes.base import Circumstances, Pass
from onnx_tailor.progress import Progress, Silent, shows_compiling
from onnx_tailor.remote import Place, Url
from onnx_tailor.remote.source import opened
from onnx_tailor.report import Change, PassReport, Report, Skip
from onnx_tailor.targets import DEFAULT, TARGETS, Target

if TYPE_CHECKING:
    from onnx_tailor.output.head_start import HeadStart
    from onnx_tailor.recipe import Recipe, Step
    from onnx_tailor.weights.files import DataFile


def run(
    recipe: Recipe,
    model: Place,
    out: Place | None,
    *,
    target: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    client: Client | None = None,
    per_model: bool = False,
    max_shard_size: int | None = None,
    executor: str = THREADS,
    progress: Progress | None = None,
    check: Check | None = None,
    ahead: HeadStart | None = None,
) -> Report:
    """Run `recipe` on the ONNX file `model`, or on every one of a folder, and write the result into folder `out`.

    `out` appears under its name only when it is whole, and when `check`, which is given the files of each model
    before and after, does not raise; what it returns stands in the report. With `resume`, the tasks that an interrupted
    run finished are taken over. The models of a folder share one data file, unless `per_model`; no data file becomes
    larger than `max_shard_size` bytes. For a `client`, names and configs are as it looks for them. `executor` is
    `threads`, or `dask://HOST:PORT` for the workers of a cluster. `model` and `out` may be on an object store; the work
    folder is then in the current folder. `ahead` has begun to hash the files of `model`; it ends once they are loaded,
    and threads of this process go on.

    Raises:
        UsageError: `out` is in the way, or the recipe does not fit this model; or there is no such executor.
        ModelError: the model cannot be read, or not rewritten as asked.
        OutputError: another run is writing to `out`, its disk fails or is full, or the cluster is gone.
    """
    started = time.monotonic()
    chosen = _target(target or recipe.target or DEFAULT)
    if client is not None and client not in get_args(Client):
        raise UsageError(f"client {client!r} is none of {', '.join(get_args(Client))}")
    watch = progress or Silent()
    with (
        opened(model) as source,
        executor_of(executor) as hands,
        tempfile.TemporaryDirectory(prefix="onnx-tailor-") as scratch,
        Digests(hands) as digests,
        shows_compiling(watch),
    ):
        models = _set_of(model_files(source.path), source.open)
        folder = None if dry_run else _checked(out, models, overwrite=overwrite)
        before = measure(models, _bytes_on_disk(models))
        if ahead is not None:
            digests.take_over(ahead.leave())
        if not dry_run:  # a thread of its own hashes the files from here on
            digests.begin(file for each in models for file in each.files)
        circumstances = Circumstances(chosen, Path(scratch), watch, dry_run, one_store=not (per_model or client))
        passes = _run_steps(recipe, models, circumstances)
        arrangement = arrange(models, source.path, client=client, per_model=per_model, max_file=max_shard_size)
        report = Report(
            version=__version__,
            recipe=recipe.name,
            target=chosen.name,
            model=str(model),
            out=None if folder is None else str(out),
            before=before,
            after=measure(models, 0),
            passes=passes,
            files=(),
            seconds=0.0,
            recipe_text=recipe.text,
            settings=recipe.settings,
        )
        job = Job(models, arrangement, report, hands, check)
        if folder is None:
            report = _foreseen(job)
        else:
            with working(folder) as work:
                report = write_output(job, work, digests, watch, resume=resume)
    return replace(report, seconds=round(time.monotonic() - started, 3))


def _run_steps(recipe: Recipe, models: Sequence[TailorModel], circumstances: Circumstances) -> tuple[PassReport, ...]:
    """Run every step on every model; return the reports of each model's own in a row."""
    reports = [_loading(each) for each in models]
    in_turn = tuple(step.pass_ for step in recipe.steps)
    for number, step in enumerate(recipe.steps):
        here = replace(circumstances, before=in_turn[:number], after=in_turn[number + 1 :])
        for own, done in zip(reports, _run_step(step, models, here), strict=True):
            own.append(done)
    passes = tuple(report for own in reports for report in own)
    for each in models:
        if any(report.changes for report in passes if report.file == each.path.name):
            forget_named_sizes(each)
    return passes


def _foreseen(job: Job) -> Report:
    """Return the report of a run that writes nothing."""
    expected = forecast(job)
    after = replace(job.report.after, file_bytes=sum(expected.file_bytes.values()))
    return replace(job.report, after=after, files=tuple(expected.file_bytes), forecast=expected)


def _target(name: str) -> Target:
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is none of {', '.join(TARGETS)}")
    return TARGETS[name]


def _set_of(files: Sequence[Path], open_file: Callable[[Path], DataFile]) -> list[TailorModel]:
    """Load the files of a set: those with a head first, whose table the others may share.

    Among these a merged decoder last, since of what stands in its branches nothing is known but by the others.
    """
    models = [load(file, open_file) for file in files]
    if len(models) > 1:
        for model in models:
            model.siblings = tuple(other for other in models if other is not model)
        models.sort(key=lambda model: (not _has_head(model), len(model.graphs()) > 1))
    return models


def _has_head(model: TailorModel) -> bool:
    return any(isinstance(head, Head | QuantizedHead) for head in find_heads(model))


def inspect(model: Path) -> Inspection:
    """Describe the ONNX file `model`, or every one of a folder.

    Raises:
        ModelError: a file cannot be read.
    """
    files = []
    for file in model_files(model):
        loaded = load(file)
        files.append(inspect_model(loaded, _bytes_on_disk([loaded])))
    return Inspection(model, tuple(files))


def _loading(model: TailorModel) -> list[PassReport]:
    """Return what was changed as the model was read, if anything was, as a report like a pass's."""
    if not model.loading:
        return []
    return [PassReport(name="load", file=model.path.name, changes=model.loading, skips=(), seconds=0.0)]


def _run_step(step: Step, models: Sequence[TailorModel], circumstances: Circumstances) -> list[PassReport]:
    """Run one step on every model; the time of preparing it counts for the first."""
    started = time.monotonic()
    reports = []
    try:
        for model, prepared in zip(models, step.pass_.prepare_set(models, circumstances), strict=True):
            reports.append(_run_pass(step, prepared, model, circumstances, started))
            started = time.monotonic()
    except OptionError as error:
        from onnx_tailor import recipe as recipes  # `inspect` reads none, and need not wait for it

        raise recipes.explain(error, step) from error
    return reports


def _run_pass(
    step: Step, prepared: Pass, model: TailorModel, circumstances: Circumstances, started: float
) -> PassReport:
    results = [_located(result, step) for result in prepared.apply(model, circumstances.target)]
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


def _checked(out: Place | None, models: Sequence[TailorModel], *, overwrite: bool) -> Folder:
    if out is None:
        raise UsageError("no output folder; give one with -o, or --dry-run to see the plan alone")
    if isinstance(out, Url):
        out.require_support()
        from onnx_tailor.remote.output import RemoteFolder

        remote = RemoteFolder(out)
        remote.require_free()
        return remote
    resolved = out.resolve()
    for path in (file.path for model in models for file in model.files):
        for source in (path.parent.resolve(), path.resolve().parent):  # two, where the file is a link
            if resolved == source or resolved in source.parents:
                raise UsageError(f"{out}: is the model's own folder, or holds it; write into another")
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir():
        raise UsageError(f"{above}: is a file; -o names a folder")
    if os.path.ismount(out):
        raise UsageError(f"{out}: is a mount point, which cannot be replaced as a whole; name a folder inside it")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise UsageError(f"{out}: exists already; choose another folder, or give --overwrite")
    return LocalFolder(resolved, overwrite)


def _bytes_on_disk(models: Sequence[TailorModel]) -> int:
    files = {file for model in models for file in model.files}
    return sum(file.size for file in files)
