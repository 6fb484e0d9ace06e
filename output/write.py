"""Write a set of models into a folder: weights, graphs, companions, report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from onnx_tailor.errors import OutputError, ResumeError
from onnx_tailor.graph.file import receipt
from onnx_tailor.graph.file.save import Storage, graph_bytes, write_graph
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.output.arrangement import Arrangement
from onnx_tailor.output.closing import Closing, flush
from onnx_tailor.output.companions import write_all
from onnx_tailor.output.digests import Digests
from onnx_tailor.output.work import Work
from onnx_tailor.progress import Progress
from onnx_tailor.report import REPORT, FileDigest, InputDigest, PassReport, Report
from onnx_tailor.weights import journal
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.tasks import Destination, Executor
from onnx_tailor.weights.writer import write

Check = Callable[[Sequence[tuple[Path, Path]], Report], Sequence[Mapping[str, Any]]]
"""Is given the files of each model before and after and the report so far, and raises where the result must not be
kept; what it returns stands in the report."""

_SPARE = 1 << 20
"""Bytes for the report and the folder's own entries."""
_AMPLE = 64 << 20
"""Bytes by which no graph grows; where a disk has room for them besides, its bytes need not be counted."""


@dataclass(frozen=True)
class Job:
    """What is to be written, and what the report says of it so far."""

    models: Sequence[TailorModel]
    arrangement: Arrangement
    report: Report
    executor: Executor
    check: Check | None = None

    @property
    def storage(self) -> Storage:
        """Where the weights will lie."""
        return self.arrangement.storage

    @property
    def inputs(self) -> tuple[DataFile, ...]:
        """The models' files, each once."""
        return tuple(dict.fromkeys(file for model in self.models for file in model.files))

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that are read."""
        return sum(job.read_bytes for job in self.storage.plan.by_job())

    @cached_property
    def file_bytes(self) -> dict[str, int]:
        """The bytes of every model and data file."""
        graphs = {
            model.file_name: graph_bytes(model, self.storage, store)
            for model, store in zip(self.models, self.storage.stores, strict=True)
        }
        return {self.arrangement.inside(name): size for name, size in {**graphs, **self.storage.plan.files}.items()}

    def disk_bytes(self) -> int:
        """Return the bytes that the output needs while it is written."""
        return sum(self.file_bytes.values()) + self._other_bytes

    @property
    def ample_bytes(self) -> int:
        """More than `disk_bytes`, and known at once: no graph becomes much larger than the files that it was in."""
        graphs = sum(file.size for file in self.inputs)
        return graphs + sum(self.storage.plan.files.values()) + self._other_bytes + _AMPLE

    @property
    def _other_bytes(self) -> int:
        return sum(file.path.stat().st_size for file in self.arrangement.companions) + _SPARE

    def about(self) -> dict[str, Any]:
        """Return what a run that resumes this one must have in common with it."""
        inputs = [[file.path.name, *file.stamp[1:]] for file in self.inputs]
        plan = self.storage.plan
        work = [(job, sorted(places.items())) for job, places in plan.by_job().items()]
        return {
            "version": self.report.version,
            "recipe": self.report.recipe_text,
            "settings": list(self.report.settings),
            "target": self.report.target,
            "inputs": inputs,
            "output": {self.arrangement.inside(name): size for name, size in plan.files.items()},
            "work": journal.fingerprint(work),
        }


def write_output(job: Job, work: Work, digests: Digests, progress: Progress, *, resume: bool) -> Report:
    """Write everything into the work folder, going on with what is there if `resume`; return the final report.

    `digests` may have begun with the inputs already.

    Raises:
        ModelError: a weight cannot be computed, an input was changed meanwhile, or `check` refuses the result.
        ResumeError: what is there was written by a run that did something else.
        OutputError: the disk has too little room, or a cluster is gone.
    """
    notes = _journal(job, work, resume=resume)
    models = work.folder / job.arrangement.subfolder
    models.mkdir(exist_ok=True)
    beside = [file.path for file in job.arrangement.companions]
    try:
        _require_room(job, work)
        digests.begin([*job.inputs, *beside])
        progress.start("writing", job.read_bytes)
        # The tiles have threads already, and sums must not depend on how many BLAS has. Small outputs of a job are
        # computed again for the graph, and must be those that belong to the large ones.
        with threadpool_limits(1, user_api="blas"), Closing(work.folder) as closing:
            write(job.storage.plan, Destination(models, work.token), progress, notes, job.executor)
            progress.start("checking", sum(job.storage.plan.files.values()))
            data = [job.arrangement.inside(name) for name in job.storage.plan.files]
            closing.begin(data, progress.advance)
            graphs, others = _write_small(job, models, work.folder)
            closing.begin([*graphs, *others])
            outputs = closing.of([*graphs, *data, *others])
        progress.finish()
        inputs = digests.of([*(file.path for file in job.inputs), *beside])
    finally:
        notes.close()
    for file in job.inputs:
        file.require_unchanged()
    report = _final(job, work.folder, inputs, outputs)
    text = json.dumps(report.to_record(), indent=1, ensure_ascii=False, allow_nan=False)
    (work.folder / REPORT).write_text(text + "\n", encoding="utf-8")
    flush(work.folder / REPORT)
    return report


def _journal(job: Job, work: Work, *, resume: bool) -> journal.Journal:
    about = job.about()
    if resume and work.journal.exists():
        try:
            found = journal.resume(work.journal, about)
        except (ValueError, TypeError) as error:
            raise ResumeError(f"{work.journal}: is no journal ({error}); run without --resume") from error
        if isinstance(found, journal.Journal):
            return found
        raise ResumeError(
            f"the run that was interrupted cannot be resumed: it had another {' and another '.join(found)}; "
            "run without --resume to begin anew"
        )
    work.clear()
    return journal.begin(work.journal, about)


def _require_room(job: Job, work: Work) -> None:
    """Refuse before the first byte what the disk cannot hold; what a resumed run has written already is there."""
    stats = [file.stat() for file in work.folder.rglob("*") if file.is_file()]
    there = sum(getattr(each, "st_blocks", 0) * 512 for each in stats)  # which Windows does not tell
    free = shutil.disk_usage(work.path).free
    if free + there >= job.ample_bytes:
        return
    needed = job.disk_bytes() - there
    if needed > free:
        raise OutputError(
            f"{work.path.parent}: the output needs {needed:,} bytes, but the disk has {free:,} left; "
            "make room, or write to another disk"
        )


def _write_small(job: Job, models: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Write graphs into the folder `models` and companions into `folder`; return the names of both from there."""
    for model, store in zip(job.models, job.storage.stores, strict=True):
        _stamp(model, job.report)
        write_graph(model, job.storage, store, models)
    graphs = [job.arrangement.inside(model.file_name) for model in job.models]
    return graphs, list(write_all(job.arrangement.companions, folder))


def _final(job: Job, folder: Path, inputs: tuple[InputDigest, ...], outputs: tuple[FileDigest, ...]) -> Report:
    beside = {file.name for file in job.arrangement.companions}
    report = job.report
    final = replace(
        report,
        after=replace(report.after, file_bytes=sum(file.bytes for file in outputs if file.name not in beside)),
        passes=tuple(done for m in job.models for done in receipt.with_errors(m, passes_of(m, report))),
        files=(*(file.name for file in outputs), REPORT),
        inputs=inputs,
        outputs=outputs,
    )
    if job.check is None:
        return final
    pairs = [(model.path, folder / job.arrangement.inside(model.file_name)) for model in job.models]
    return replace(final, verified=tuple(job.check(pairs, final)))


def _stamp(model: TailorModel, report: Report) -> None:
    """Put the receipt of this run into the model's own metadata."""
    header = {
        "version": report.version,
        "recipe": report.recipe,
        "target": report.target,
        "weight_bytes": [report.before.weight_bytes, report.after.weight_bytes],
        "bits_per_weight": report.after.bits_per_weight,
    }
    receipt.stamp(model, header, passes_of(model, report))


def passes_of(model: TailorModel, report: Report) -> list[PassReport]:
    """Return what the passes did to one of the models."""
    return [done for done in report.passes if done.file == model.path.name]
