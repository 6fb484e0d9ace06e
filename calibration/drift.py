"""How an input drifts where the weights before it are quantized: sums over pairs of activations."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_tailor.errors import ModelError
from onnx_tailor.quant import fit_drift

Array = npt.NDArray[Any]
_BAND = 256
"""Rows of a matrix that one task sums."""


class DriftSums:
    """What is known of one input of `columns` channels: x in the model as it is, z where it is quantized."""

    def __init__(self, name: str, columns: int) -> None:
        """Begin with nothing."""
        self._name = name
        self._hessian = np.zeros((columns, columns), np.float32)
        self._moved = np.zeros((columns, columns), np.float32)
        self._count = 0
        self._paired = True

    def add(self, plain: Array, quantized: Array, pool: Executor) -> None:
        """Add every vector of `plain` and `quantized`, both [..., columns] of any float type.

        Where they are not as many, as those that a router sends to an expert need not be, no drift is found.

        Raises:
            ModelError: an activation holds a NaN or an infinity.
        """
        columns = len(self._hessian)
        x, z = (np.ascontiguousarray(each.reshape(-1, columns), np.float32) for each in (plain, quantized))
        if not (np.isfinite(x).all() and np.isfinite(z).all()):
            raise ModelError(f"the input {self._name} holds a NaN or an infinity")
        self._paired = self._paired and len(x) == len(z)
        if not self._paired:
            return
        self._count += len(z)
        x -= z
        tasks: list[Future[None]] = []
        # Each band by one thread, so that sums are the same for any number of them.
        for first in range(0, columns, _BAND):
            tasks.append(pool.submit(_sum, self._hessian[first : first + _BAND, first:], z[:, first:], z[:, first:]))
            tasks.append(pool.submit(_sum, self._moved[first : first + _BAND], x[:, first:], z))
        for task in tasks:
            task.result()

    def drift(self) -> npt.NDArray[np.float32] | None:
        """Return D [columns, columns], where x - z is about D z; None where the vectors are no pairs."""
        if not self._paired or not self._count:
            return None
        hessian = np.triu(self._hessian) + np.triu(self._hessian, 1).T
        scale = np.float32(1 / self._count)
        return fit_drift(hessian * scale, self._moved * scale)


def _sum(into: Array, first: Array, second: Array) -> None:
    """Add first^T @ second, of as many channels of `first` as `into` has rows."""
    into += first[:, : len(into)].T @ second
