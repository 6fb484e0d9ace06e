"""Windows on files that read as tensors: the source of every weight."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_tailor.weights.files import DataFile, InlineBytes

TILE_BYTES = 4 << 20
"""About how many bytes one task reads: large enough for the disk, small enough for the memory."""
_MIN_SEGMENT = 2048


class Window(Hashable, Protocol):
    """What reads as a tensor, in tiles: a View of one file, or several of them joined. Equal windows read the same."""

    @property
    def dtype(self) -> ir.DataType:
        """Type of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""

    @property
    def size(self) -> int:
        """Number of elements."""

    @property
    def nbytes(self) -> int:
        """Bytes of the elements when stored without gaps; two 4-bit elements share a byte."""

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps in one file."""

    @property
    def turned(self) -> bool:
        """Whether its rows run across the file's, so that a range of them is read in one piece for each column."""

    def transpose(self) -> Window:
        """Return the transposed window of a matrix; no byte moves."""

    def rows(self, start: int, stop: int) -> Window:
        """Return the window of the rows `start` to `stop`; no byte moves."""

    def reshape(self, shape: tuple[int, ...]) -> Window:
        """Return the same elements under another shape; only where the rows are contiguous and stay rows."""

    def tiles(self) -> list[tuple[int, int]]:
        """Return ranges of rows (start, stop), each worth about `TILE_BYTES`, that cover the tensor."""

    def read(self) -> npt.NDArray[np.generic]:
        """Read the whole tensor, in its shape and own dtype; for small tensors and tiles of larger ones."""


@dataclass(frozen=True)
class View:
    """A tensor in a file, possibly transposed or sliced. Two views that read the same elements alike are equal."""

    file: DataFile | InlineBytes
    offset: int
    """Byte of the first element."""
    dtype: ir.DataType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements, not bytes, between neighbours along each dimension."""

    @classmethod
    def contiguous(cls, file: DataFile | InlineBytes, offset: int, dtype: ir.DataType, shape: tuple[int, ...]) -> View:
        """Return the view of a tensor stored in row-major order."""
        return cls(file, offset, dtype, shape, _row_major(shape))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements when stored without gaps; two 4-bit elements share a byte."""
        return packed_bytes(self.size, self.dtype)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        expected = _row_major(self.shape)
        return all(n == 1 or s == e for n, s, e in zip(self.shape, self.strides, expected, strict=True))

    @property
    def turned(self) -> bool:
        """Whether its rows run across the file's, so that a range of them is read in one piece for each column."""
        return not self.is_contiguous and self.strides[0] == 1

    def transpose(self) -> View:
        """Return the transposed view of a matrix; no byte moves."""
        rows, columns = self.shape
        return View(self.file, self.offset, self.dtype, (columns, rows), self.strides[::-1])

    def rows(self, start: int, stop: int) -> View:
        """Return the view of the rows `start` to `stop`; no byte moves."""
        offset = self.offset + int(start * self.strides[0] * self.dtype.itemsize)
        return View(self.file, offset, self.dtype, (stop - start, *self.shape[1:]), self.strides)

    def reshape(self, shape: tuple[int, ...]) -> View:
        """Return the same bytes under another shape; only for contiguous views."""
        assert self.is_contiguous
        assert math.prod(shape) == self.size
        return View.contiguous(self.file, self.offset, self.dtype, shape)

    def bytes_view(self) -> View:
        """Return the view of a contiguous tensor's bytes, as uint8 of one dimension."""
        assert self.is_contiguous
        return View.contiguous(self.file, self.offset, ir.DataType.UINT8, (self.nbytes,))

    def tiles(self) -> list[tuple[int, int]]:
        """Return ranges of rows (start, stop), each worth about `TILE_BYTES`, that cover the tensor."""
        return tile_rows(self)

    def read(self) -> npt.NDArray[np.generic]:
        """Read the whole tensor, in its shape and own dtype; for small tensors and tiles of larger ones."""
        if self.is_contiguous:
            return self._read_run().reshape(self.shape)
        rows, columns = self.shape
        dtype = self.dtype.numpy()
        if self.strides[0] == 1:  # transposed: the file's rows are this view's columns
            buffer = np.empty((columns, rows), dtype)
            self._read_segments(buffer, self.strides[1])
            return buffer.T
        buffer = np.empty((rows, columns), dtype)
        self._read_segments(buffer, self.strides[0])
        return buffer

    def _read_run(self) -> npt.NDArray[np.generic]:
        raw = np.empty(self.nbytes, np.uint8)
        self.file.read_into(self.offset, raw)
        return raw.view(self.dtype.numpy())

    def _read_segments(self, buffer: npt.NDArray[np.generic], pitch: int) -> None:
        """Read `buffer`'s rows, which lie `pitch` elements apart in the file."""
        if pitch == buffer.shape[1]:
            self.file.read_into(self.offset, buffer.reshape(-1).view(np.uint8))
            return
        step = int(pitch * self.dtype.itemsize)
        self.file.read_rows(self.offset, step, buffer.view(np.uint8))


def packed_bytes(count: int, dtype: ir.DataType) -> int:
    """Return the bytes of so many elements without gaps; in integers, as a file may claim more than floats hold."""
    return -(-count * dtype.bitwidth // 8)


def as_bytes(window: Window) -> Window:
    """Return a contiguous view as its bytes, so that one range of bytes has one key; any other window as it is."""
    return window.bytes_view() if isinstance(window, View) and window.is_contiguous else window


def tile_rows(window: Window) -> list[tuple[int, int]]:
    """Return ranges of rows (start, stop), each worth about `TILE_BYTES`, that cover the tensor."""
    count = window.shape[0] if window.shape else 1
    row_bytes = max(1.0, window.nbytes / max(1, count))
    return ranges(count, max(shortest(window), int(TILE_BYTES / row_bytes)))


def shortest(window: Window) -> int:
    """Return the least rows of a tile: each column is read in pieces of so many elements where rows run across."""
    return max(1, int(_MIN_SEGMENT / window.dtype.itemsize)) if window.turned else 1


def ranges(count: int, step: int) -> list[tuple[int, int]]:
    """Return the ranges (start, stop) of `step` that cover `count`, the last of what is left."""
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)
