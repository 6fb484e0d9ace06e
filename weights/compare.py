"""Compare two weights element by element, in tiles."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_tailor.weights.pool import memory, workers
from onnx_tailor.weights.view import Window

_PART = 1 << 17
"""Elements that are compared at once: few enough for a processor's cache."""


@dataclass(frozen=True)
class Comparison:
    """How two matrices of one shape differ, their values taken as float32."""

    elements: int
    different: int
    """Elements whose values differ; a NaN differs from everything."""
    different_rounded: int
    """Elements that still differ after both are rounded to the narrower of the two types."""
    largest: float
    """The largest absolute difference; NaN and infinite differences count as infinite."""
    where: tuple[int, int]
    """Row and column of the largest difference."""

    @property
    def equal(self) -> bool:
        """Whether every value is equal."""
        return self.different == 0

    @property
    def equal_rounded(self) -> bool:
        """Whether every value is equal once the wider is rounded to the narrower type."""
        return self.different_rounded == 0


def compare(first: Window, second: Window) -> Comparison:
    """Compare two matrices of the same shape. Both are read once, a few tiles at a time."""
    assert first.shape == second.shape
    if first == second:
        return Comparison(first.size, 0, 0, 0.0, (0, 0))
    narrow = min(first.dtype, second.dtype, key=lambda dtype: dtype.itemsize).numpy()
    tiles = max(first.tiles(), second.tiles(), key=lambda ranges: ranges[0][1])

    def one(tile: tuple[int, int]) -> Comparison:
        # Both tiles, their float32 forms and the differences.
        with memory.reserved(8 * max(first.rows(*tile).nbytes, second.rows(*tile).nbytes)):
            return _compare_tile(first.rows(*tile).read(), second.rows(*tile).read(), narrow, tile[0])

    with ThreadPoolExecutor(workers()) as pool:
        return _sum(pool.map(one, tiles))


def _compare_tile(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic], narrow: np.dtype, row: int) -> Comparison:
    if a.dtype == b.dtype and np.array_equal(a, b):
        return Comparison(a.size, 0, 0, 0.0, (row, 0))
    step = max(1, _PART // a.shape[1])
    starts = range(0, len(a), step)
    return _sum(_compare_part(a[at : at + step], b[at : at + step], narrow, row + at) for at in starts)


def _compare_part(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic], narrow: np.dtype, row: int) -> Comparison:
    left, right = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    differ = left != right  # NaN != NaN
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = differ if narrow == np.float32 else left.astype(narrow) != right.astype(narrow)
        distance = np.abs(left - right)
    distance[np.isnan(distance) & differ] = np.inf
    distance[~differ] = 0
    at = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return Comparison(
        a.size, int(differ.sum()), int(rounded.sum()), float(distance[at]), (row + int(at[0]), int(at[1]))
    )


def _sum(parts: Iterable[Comparison]) -> Comparison:
    total = Comparison(0, 0, 0, -1.0, (0, 0))
    for part in parts:
        worst = part if part.largest > total.largest else total
        total = Comparison(
            total.elements + part.elements,
            total.different + part.different,
            total.different_rounded + part.different_rounded,
            worst.largest,
            worst.where,
        )
    return total
