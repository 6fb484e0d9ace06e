"""Carry out a storage plan: independent tiles read, compute and write on all cores."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from onnx_tailor.progress import Progress
from onnx_tailor.weights.jobs import WORK, Job, Measuring, tile_bytes
from onnx_tailor.weights.journal import Journal, Record
from onnx_tailor.weights.plan import Place, Plan
from onnx_tailor.weights.pool import memory, workers


@dataclass(frozen=True)
class _Task:
    number: int
    job: Job
    tile: tuple[int, int]
    places: Mapping[str, tuple[Place, ...]]
    cost: int
    """Bytes it reads, for the progress."""


def write(plan: Plan, folder: Path, progress: Progress, journal: Journal) -> None:
    """Fill the data files in `folder`, but for the tasks that the journal has already. Nothing is flushed to the disk.

    Memory use is a few tiles a thread, within the budget of `pool`, whatever the size of the model.

    Raises:
        ModelError: a source file was cut off or replaced, or a weight cannot be computed.
        OSError: a file cannot be written.
    """
    for name, size in plan.files.items():
        with (folder / name).open("ab") as file:
            file.truncate(size)
    _Writer(folder, progress, journal).run(plan)


class _Writer:
    def __init__(self, folder: Path, progress: Progress, journal: Journal) -> None:
        self._folder = folder
        self._progress = progress
        self._journal = journal
        self._local = threading.local()
        self._failed = threading.Event()
        self._opened: list[FileIO] = []

    def run(self, plan: Plan) -> None:
        with ThreadPoolExecutor(workers()) as pool:
            try:
                pending: set[Future[None]] = set()
                for task in _tasks(plan):  # a bounded queue: a large model has many thousand tiles
                    pending.add(pool.submit(self._work, task))
                    if len(pending) > 4 * workers():
                        done, pending = wait(pending, return_when="FIRST_COMPLETED")
                        _raise_first(done)
                done, _ = wait(pending, return_when=FIRST_EXCEPTION)
                _raise_first(done)
            except BaseException:
                self._failed.set()
                raise
        for file in self._opened:
            file.close()

    def _work(self, task: _Task) -> None:
        if self._failed.is_set():
            return
        job, known = task.job, self._journal.records.get(task.number)
        if known is not None and known.matches(self._folder):
            if isinstance(job, Measuring):
                job.recall(task.tile, known.measured)
        else:
            pieces = []
            with memory.reserved(WORK * task.cost):
                for output, position, piece in job.compute(task.tile, frozenset(task.places)):
                    content = piece.reshape(-1).view(np.uint8).data
                    checksum = zlib.crc32(content)
                    for place in task.places[output]:
                        self._write(place.file, place.offset + position, content)
                        pieces.append((place.file, place.offset + position, len(content), checksum))
            measured = job.measured(task.tile) if isinstance(job, Measuring) else ()
            self._journal.note(task.number, Record(tuple(pieces), measured))
        self._progress.advance(task.cost)

    def _write(self, name: str, offset: int, content: memoryview) -> None:
        file = self._file(name)
        file.seek(offset)
        while len(content):
            content = content[file.write(content) :]

    def _file(self, name: str) -> FileIO:
        """Return this thread's own handle, whose position no other moves."""
        files: dict[str, FileIO] = self._local.__dict__.setdefault("files", {})
        if name not in files:
            files[name] = FileIO(self._folder / name, "r+")
            self._opened.append(files[name])
        return files[name]


def _tasks(plan: Plan) -> Iterator[_Task]:
    number = 0
    for job, places in plan.by_job().items():
        tiles = job.tiles()
        total = sum(stop - start for start, stop in tiles)
        for tile in tiles:
            yield _Task(number, job, tile, places, tile_bytes(job, tile, total))
            number += 1


def _raise_first(done: set[Future[None]]) -> None:
    for future in done:
        future.result()
