"""Carry out a storage plan: independent tiles read, compute and write on all cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from onnx_tailor.progress import Progress
from onnx_tailor.weights.jobs import Job
from onnx_tailor.weights.plan import Plan
from onnx_tailor.weights.pool import workers

_Task = tuple[Job, tuple[int, int], dict[str, int], int]


def write(plan: Plan, path: Path, progress: Progress) -> None:
    """Create the data file at `path`. Memory use is a few tiles a thread, whatever the size of the model.

    Raises:
        ModelError: a source file was cut off or replaced, or a weight cannot be computed.
        OSError: the file cannot be written.
    """
    with path.open("xb") as file:
        file.truncate(plan.size)
        _Writer(path, progress).run(plan)
        os.fsync(file.fileno())


class _Writer:
    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._local = threading.local()
        self._failed = threading.Event()

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

    def _work(self, task: _Task) -> None:
        if self._failed.is_set():
            return
        job, tile, offsets, cost = task
        if not hasattr(self._local, "file"):
            self._local.file = self._path.open("r+b", buffering=0)
        file = self._local.file
        for output, position, piece in job.compute(tile, frozenset(offsets)):
            view = piece.reshape(-1).view(np.uint8).data
            file.seek(offsets[output] + position)
            while len(view):
                view = view[file.write(view) :]
        self._progress.advance(cost)


def _tasks(plan: Plan) -> Iterator[_Task]:
    for job, offsets in plan.by_job().items():
        tiles = job.tiles()
        total = max(1, sum(stop - start for start, stop in tiles))
        for start, stop in tiles:
            yield job, (start, stop), offsets, job.read_bytes * (stop - start) // total


def _raise_first(done: set[Future[None]]) -> None:
    for future in done:
        future.result()
