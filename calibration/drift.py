"""How the inputs of projections drift where the model before them is quantized: sums over pairs of activations."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_tailor.errors import ModelError
from onnx_tailor.quant import Moments

Array = npt.NDArray[Any]
_BAND = 256
"""Rows of a matrix that one task sums."""


class DriftSums:
    """What is known of one input of `columns` channels: x in the model as it is, z where it is quantized."""

    def __init__(self, name: str, columns: int) -> None:
        """Begin with nothing."""
        self._name = name
        self._hessian = np.zeros((columns, columns), np.float32)
        self._drift: npt.NDArray[np.float32] | None = np.zeros((columns, columns), np.float32)
        self._count = 0

    def add(self, plain: Array, quantized: Array, pool: Executor) -> None:
        """Add every vector of `plain` and `quantized`, both [..., columns] of any float type.

        Where they are not as many, as those that a router sends to an expert need not be, nothing is said of the drift.

        Raises:
            ModelError: an activation holds a NaN or an infinity.
        """
        columns = len(self._hessian)
        x, z = (np.ascontiguousarray(each.reshape(-1, columns), np.float32) for each in (plain, quantized))
        if not (np.isfinite(x).all() and np.isfinite(z).all()):
            raise ModelError(f"the input {self._name} holds a NaN or an infinity")
        if self._drift is not None and len(x) != len(z):
            self._drift = None
        tasks: list[Callable[[int], None]] = [partial(_sum, self._hessian, z, z)]
        if self._drift is not None:
            tasks.append(partial(_sum, self._drift, x - z, z))
        # Each band by one thread, so that sums are the same for any number of them.
        for done in [pool.submit(task, first) for task in tasks for first in range(0, columns, _BAND)]:
            done.result()
        self._count += len(z)

    def moments(self) -> Moments:
        """Return the means, and forget the sums: the memory is the result's."""
        scale = np.float32(1 / max(1, self._count))
        self._hessian *= scale
        if self._drift is not None:
            self._drift *= scale
        return Moments(self._hessian, self._drift)

    @property
    def count(self) -> int:
        """Vectors z that were added."""
        return self._count


def _sum(into: npt.NDArray[np.float32], first: Array, second: Array, start: int) -> None:
    band = slice(start, start + _BAND)
    into[band] += first[:, band].T @ second
