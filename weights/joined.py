"""Several windows as one tensor, side by side: what packs projections without writing them first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_tailor.weights.view import View, Window, tile_rows


@dataclass(frozen=True)
class Joined:
    """Windows of one type, joined along an axis in which alone their shapes may differ."""

    parts: tuple[Window, ...]
    axis: int
    """0: one below the other; 1: one beside the other."""

    @property
    def dtype(self) -> ir.DataType:
        """The parts' type."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The parts' shape with their lengths along the axis summed up."""
        dims = list(self.parts[0].shape)
        dims[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(dims)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    @property
    def is_contiguous(self) -> bool:
        """False: `join` returns one view where the parts lie in one run."""
        return False

    @property
    def turned(self) -> bool:
        """Whether every part's rows run across its file's."""
        return all(part.turned for part in self.parts)

    def transpose(self) -> Window:
        """Return the transposed window of a matrix; no byte moves."""
        return Joined(tuple(part.transpose() for part in self.parts), 1 - self.axis)

    def rows(self, start: int, stop: int) -> Window:
        """Return the window of the rows `start` to `stop`: one part's own where they lie inside it."""
        if self.axis:
            return Joined(tuple(part.rows(start, stop) for part in self.parts), self.axis)
        inside, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.shape[0])
            if low < high or (start == stop and 0 <= start - first <= part.shape[0]):
                inside.append(part if (low, high) == (0, part.shape[0]) else part.rows(low, high))
            first += part.shape[0]
        return inside[0] if len(inside) == 1 else Joined(tuple(inside), 0)

    def reshape(self, shape: tuple[int, ...]) -> Window:
        """Return the same rows under another shape; only for contiguous windows one below the other."""
        assert self.axis == 0
        assert shape[0] == self.shape[0]
        return Joined(tuple(part.reshape((part.shape[0], *shape[1:])) for part in self.parts), 0)

    def tiles(self) -> list[tuple[int, int]]:
        """Return ranges of rows (start, stop) that cover the tensor."""
        return tile_rows(self)

    def read(self) -> npt.NDArray[np.generic]:
        """Read all parts; for small tensors and tiles of larger ones."""
        return np.concatenate([part.read() for part in self.parts], axis=self.axis)


def join(parts: Sequence[Window], axis: int) -> Window:
    """Return `parts` as one tensor: a view where they follow each other in one file, as after a division."""
    first, end = parts[0], parts[0]
    for part in parts[1:]:
        if not (isinstance(end, View) and isinstance(part, View) and _follows(end, part, axis)):
            return Joined(tuple(parts), axis)
        end = part
    assert isinstance(first, View)
    dims = list(first.shape)
    dims[axis] = sum(part.shape[axis] for part in parts)
    return replace(first, shape=tuple(dims))


def _follows(first: View, second: View, axis: int) -> bool:
    step = first.strides[axis] * first.shape[axis] * first.dtype.itemsize
    return (
        (first.file, first.dtype, first.strides) == (second.file, second.dtype, second.strides)
        and second.offset == first.offset + step
        and step == int(step)
    )
