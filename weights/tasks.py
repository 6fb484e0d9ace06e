"""A storage plan as a list of independent tasks: read this range, compute, write that range."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.jobs import Job, Measuring, tile_bytes
from onnx_tailor.weights.journal import Record
from onnx_tailor.weights.plan import Place, Plan
from onnx_tailor.weights.pool import memory

Put = Callable[[str, int, memoryview], None]
"""Stores bytes: the name of a data file, the offset within it, the bytes."""


@dataclass(frozen=True)
class Task:
    """One tile of a job, and where its outputs go. Small, and can be pickled: it names ranges of files."""

    number: int
    """Its place in the plan; the same in every run of one plan."""
    job: Job
    tile: tuple[int, int]
    places: Mapping[str, tuple[Place, ...]]
    cost: int
    """Bytes it reads."""
    memory: int
    """About how many bytes are in memory while it is carried out."""

    def carry_out(self, put: Put) -> Record:
        """Compute the tile, hand every piece of it to `put`, and return what the journal is to note.

        Raises:
            ModelError: a source file was cut off or replaced, or the weight cannot be computed.
        """
        pieces = []
        with memory.reserved(self.memory):
            for output, position, piece in self.job.compute(self.tile, frozenset(self.places)):
                content = piece.reshape(-1).view(np.uint8).data
                checksum = zlib.crc32(content)
                for place in self.places[output]:
                    put(place.file, place.offset + position, content)
                    pieces.append((place.file, place.offset + position, len(content), checksum))
        return Record(tuple(pieces), self.job.measured(self.tile) if isinstance(self.job, Measuring) else ())

    def recall(self, record: Record) -> None:
        """Take over what was measured where the task was carried out: in an earlier run, or on another machine."""
        if isinstance(self.job, Measuring):
            self.job.recall(self.tile, record.measured)


@dataclass(frozen=True)
class Destination:
    """Where the outputs go."""

    folder: Path
    """It holds the data files at their full sizes."""
    token: Path
    """A file that an executor may write: by its content another machine knows that it sees this run's folder itself."""


Done = Callable[[Task, Record], None]
"""Hears of every finished task; calls may come from several threads."""


class Executor(Protocol):
    """Carries tasks out, somewhere."""

    def carry_out(self, tasks: Iterable[Task], to: Destination, done: Done) -> None:
        """Carry out `tasks` and tell `done` of each.

        Raises:
            ModelError: a source file was cut off or replaced, or a weight cannot be computed.
            OutputError: those that were to carry out the tasks are gone.
            OSError: a file cannot be written.
        """

    @property
    def hashers(self) -> int:
        """How many files it hashes at once."""

    def blake3(self, file: DataFile, advance: Callable[[int], None]) -> str:
        """Return the BLAKE3 of an input in hexadecimal; may be called from several threads.

        `advance` is called every now and then with the bytes read, and ends the work by raising.

        Raises:
            ModelError: the file was replaced, or cannot be read.
            OSError: the file cannot be read.
        """


def tasks(plan: Plan) -> Iterator[Task]:
    """Iterate over the tasks of a plan, job by job."""
    number = 0
    for job, places in plan.by_job().items():
        tiles = job.tiles()
        total = sum(stop - start for start, stop in tiles)
        for tile in tiles:
            yield Task(number, job, tile, places, tile_bytes(job, tile, total), job.work_bytes(tile))
            number += 1
