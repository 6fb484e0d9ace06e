"""How a matrix that is stored by columns is divided: into tiles of many rows, each of them read in bands of columns.

The file holds each column in one run: the more rows a tile has, the fewer and longer are the pieces in which it is
read, and a band of all rows is one piece. Memory holds a band and what was computed so far, so a tile may read more.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnx_tailor.quant import BlockFormat, ErrorSums, Quantized
from onnx_tailor.weights import view
from onnx_tailor.weights.view import Window

_RESULTS = 2
"""How many `view.TILE_BYTES` the results of a tile take."""


def tiles(window: Window, fmt: BlockFormat, result_bytes: int) -> list[tuple[int, int]]:
    """Return ranges of rows (start, stop) that cover a matrix [N, K], whose results take `result_bytes` altogether."""
    rows, columns = window.shape
    fitting = _RESULTS * view.TILE_BYTES * rows // max(1, result_bytes)
    step = min(fitting, _band_bytes() // int(_unit(fmt, columns) * window.dtype.itemsize))
    return view.ranges(rows, max(step, view.shortest(window)))


def bands(window: Window, fmt: BlockFormat) -> list[tuple[int, int]]:
    """Return ranges of columns (start, stop) that cover a matrix [rows, K]: the bands of one tile.

    Each but the last has whole blocks, whose zero points fill whole bytes.
    """
    rows, columns = window.shape
    unit = _unit(fmt, columns)
    units = _band_bytes() // int(max(1, rows) * unit * window.dtype.itemsize)
    return view.ranges(columns, max(1, units) * unit)


def band(window: Window, start: int, stop: int) -> Window:
    """Return the window of the columns `start` to `stop`; no byte moves."""
    return window.transpose().rows(start, stop).transpose()


def joined(parts: Iterable[tuple[tuple[int, int], Quantized]], rows: int, columns: int, fmt: BlockFormat) -> Quantized:
    """Return a matrix [rows, K] from its quantized `bands`, each given with its columns (start, stop)."""
    blocks = fmt.blocks(columns)
    codes = np.empty((rows, blocks, fmt.blob_bytes), np.uint8)
    scales = np.empty((rows, blocks), fmt.dtype)
    row_bytes = 0 if fmt.symmetric else fmt.zero_point_row_bytes(columns)
    points = np.empty((rows, row_bytes), np.uint8)
    sums = ErrorSums()
    for (start, stop), part in parts:
        here = slice(start // fmt.block_size, fmt.blocks(stop))
        codes[:, here], scales[:, here] = part.codes, part.scales
        if part.zero_points is not None:
            first = fmt.zero_point_row_bytes(start)
            points[:, first : fmt.zero_point_row_bytes(stop)] = np.ascontiguousarray(part.zero_points).view(np.uint8)
        sums += part.sums
    stored = points.view(fmt.dtype) if fmt.float_points else points
    return Quantized(codes, scales, None if fmt.symmetric else stored, sums)


def _band_bytes() -> int:
    """Return about how many bytes are read at once: few enough for a processor's cache."""
    return view.TILE_BYTES // 2


def _unit(fmt: BlockFormat, columns: int) -> int:
    """Return the number of columns whose zero points fill a byte, at most all."""
    return max(1, min(fmt.block_size * 8 // fmt.bits, columns))
