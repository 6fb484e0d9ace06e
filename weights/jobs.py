"""Work that makes an output's bytes from file ranges, in independent tiles."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant.order import row_major
from onnx_tailor.weights.view import Window, as_bytes

Piece = tuple[str, int, npt.NDArray[np.generic]]
"""Bytes of an output: its name, the offset within it, and a contiguous array to store there."""


class Job(Hashable, Protocol):
    """Computes one or several outputs whose sizes are known beforehand. Equal jobs compute equal bytes."""

    @property
    def outputs(self) -> Mapping[str, int]:
        """Bytes of each output, by name."""

    @property
    def read_bytes(self) -> int:
        """Bytes that all tiles read together: the job's share of the progress."""

    def tiles(self) -> list[tuple[int, int]]:
        """Return the independent parts of the job."""

    def work_bytes(self, tile: tuple[int, int]) -> int:
        """Return about how many bytes are in memory while `tile` is computed."""

    def compute(self, tile: tuple[int, int], wanted: frozenset[str]) -> Iterator[Piece]:
        """Yield the bytes that `tile` contributes to the `wanted` outputs."""


@runtime_checkable
class Measuring(Protocol):
    """A job that measures something while it computes, which a resumed run takes over from the journal."""

    def measured(self, tile: tuple[int, int]) -> tuple[float, ...]:
        """Return what was measured on `tile`, which was computed."""

    def recall(self, tile: tuple[int, int], measured: tuple[float, ...]) -> None:
        """Take over what an earlier run measured on `tile`."""


WORK = 3
"""Bytes in memory for each byte that is read at once: the tile, its float32 form, what is computed from it."""


@dataclass(frozen=True)
class CopyJob:
    """Stores a view's elements in row-major order: a byte copy, or a transposition in tiles."""

    view: Window

    @property
    def outputs(self) -> Mapping[str, int]:
        """One output, `data`."""
        return {"data": self.view.nbytes}

    @property
    def read_bytes(self) -> int:
        """The view's bytes."""
        return self.view.nbytes

    def tiles(self) -> list[tuple[int, int]]:
        """Return ranges of bytes of a contiguous view, of rows of another."""
        return self._source().tiles()

    def work_bytes(self, tile: tuple[int, int]) -> int:
        """Return about how many bytes are in memory while `tile` is computed."""
        return WORK * self._source().rows(*tile).nbytes

    def compute(self, tile: tuple[int, int], wanted: frozenset[str]) -> Iterator[Piece]:
        """Read one tile."""
        assert wanted == {"data"}
        source = self._source().rows(*tile)
        row_bytes = int(source.dtype.itemsize * (source.size // max(1, source.shape[0])))
        yield "data", tile[0] * row_bytes, row_major(source.read())

    def _source(self) -> Window:
        return as_bytes(self.view)


def tile_bytes(job: Job, tile: tuple[int, int], total: int) -> int:
    """Return the share of a job's bytes that one tile reads, out of `total` rows."""
    return job.read_bytes * (tile[1] - tile[0]) // max(1, total)
