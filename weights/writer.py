"""Carry out a storage plan: fill the data files, but for what an earlier run has written already."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from onnx_tailor.progress import Progress
from onnx_tailor.weights.journal import Journal, Record
from onnx_tailor.weights.plan import Plan
from onnx_tailor.weights.pool import workers
from onnx_tailor.weights.tasks import Destination, Executor, Task, tasks


def write(plan: Plan, to: Destination, progress: Progress, journal: Journal, executor: Executor) -> None:
    """Fill the data files of `to`, but for the tasks that the journal has already. Nothing is flushed to the disk.

    Raises:
        ModelError: a source file was cut off or replaced, or a weight cannot be computed.
        OutputError: those that were to carry out the tasks are gone.
        OSError: a file cannot be written.
    """
    for name, size in plan.files.items():
        with (to.folder / name).open("ab") as file:
            file.truncate(size)
    known = _still_there(journal, to.folder)
    todo = (task for task in tasks(plan) if not _recalled(task, known, progress))

    def done(task: Task, record: Record) -> None:
        journal.note(task.number, record)
        progress.advance(task.cost)

    executor.carry_out(todo, to, done)


def _still_there(journal: Journal, folder: Path) -> dict[int, Record]:
    """Return the tasks of an earlier run whose bytes are still those that it wrote."""
    if not journal.records:
        return {}
    with ThreadPoolExecutor(workers()) as pool:
        found = pool.map(lambda record: record.matches(folder), journal.records.values())
        return {number: record for (number, record), same in zip(journal.records.items(), found, strict=True) if same}


def _recalled(task: Task, known: dict[int, Record], progress: Progress) -> bool:
    """Whether the task is finished; if so, its results are taken over."""
    record = known.get(task.number)
    if record is None:
        return False
    task.recall(record)
    progress.advance(task.cost)
    return True
