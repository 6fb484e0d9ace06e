"""Sums over activations, in float64 for each channel and in float32 for each pair of channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_tailor.errors import ModelError

Array = npt.NDArray[Any]
_BAND = 256
"""Rows of a Hessian that are summed at once: of a whole x^T x, numpy copies half to the other side, one by one."""
_CHUNK = 1 << 20
"""Elements that are converted to float32 at once."""


@dataclass
class InputSums:
    """What is known of one input of a projection, of `columns` channels."""

    name: str
    columns: int
    hessian: npt.NDArray[np.float32] | None
    """Sum of x x^T [columns, columns], its upper right half; None where only the squares are wanted."""
    squares: npt.NDArray[np.float64] = field(init=False)
    """Sum of x^2 [columns]."""
    count: int = 0
    """Vectors x that were added."""

    def __post_init__(self) -> None:
        self.squares = np.zeros(self.columns)

    @classmethod
    def empty(cls, name: str, columns: int, *, hessian: bool) -> InputSums:
        """Return sums over nothing."""
        return cls(name, columns, np.zeros((columns, columns), np.float32) if hessian else None)

    def add(self, activation: Array) -> None:
        """Add every vector of `activation` [..., columns], of any float type.

        Raises:
            ModelError: the activation has another size, or holds a NaN or an infinity.
        """
        if activation.shape[-1:] != (self.columns,):
            raise ModelError(
                f"the input {self.name} has the shape {list(activation.shape)}, but its weight {self.columns} columns"
            )
        vectors = activation.reshape(-1, self.columns)
        step = max(1, _CHUNK // self.columns)
        for start in range(0, len(vectors), step):
            x = np.ascontiguousarray(vectors[start : start + step], np.float32)
            squares = np.einsum("nk,nk->k", x, x, dtype=np.float64)
            if not np.isfinite(squares).all():
                raise ModelError(
                    f"the input {self.name} holds a NaN or an infinity in channel "
                    f"{int(np.flatnonzero(~np.isfinite(squares))[0])}; the model does not survive this text"
                )
            self.squares += squares
            if self.hessian is not None:
                for first in range(0, self.columns, _BAND):
                    band = x[:, first : first + _BAND].T
                    self.hessian[first : first + _BAND, first:] += band @ x[:, first:]
        self.count += len(vectors)

    def mean_square(self) -> npt.NDArray[np.float32]:
        """Return the mean of x^2 [columns]; zeros where nothing was added."""
        return (self.squares / max(1, self.count)).astype(np.float32)

    def mean_hessian(self) -> npt.NDArray[np.float32]:
        """Return the mean of x x^T, and forget the sums: the memory is the result's."""
        assert self.hessian is not None
        result, self.hessian = self.hessian, None
        result *= np.float32(1 / max(1, self.count))
        for first in range(0, self.columns, _BAND):
            band = slice(first, first + _BAND)
            result[band, band] = np.triu(result[band, band]) + np.triu(result[band, band], 1).T
            result[first + _BAND :, band] = result[band, first + _BAND :].T
        return result
