"""Zero points that are no integers: scale and zero point of a block by least squares, codes by rounding, in turn.

As llama.cpp fits scale and minimum of its k-quants; judged by the values as they are stored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant.format import BlockFormat, Quantized
from onnx_tailor.quant.packing import codes_of, pack, zero_points_of

Floats = npt.NDArray[np.float32]

_RANGES = (1.0, 0.95, 0.9)
"""Parts of a block's range, about its middle, onto which grids are laid to begin with."""
_SURELY = 1 - 1e-6
"""Costs are float32: what is less by no more than their rounding need not be less."""
_FITS = 3
"""Times that least squares and rounding follow each other."""


def with_float_points(weight: Floats, fmt: BlockFormat, start: Quantized, costs: Floats | None) -> Quantized:
    """Return `start`, which has integer zero points, or better, block by block, in the error that `costs` weighs.

    Args:
        weight: float32 [rows, K].
        fmt: `float_points` is set; zero points are stored in the type of the scales.
        start: the blocks with integer zero points, which no block ends worse than.
        costs: what an error in each element costs, float32 [rows, K]; None for plain rounding: the block's range onto
            the codes, and no fit.
    """
    grid = _Grid(weight, fmt, start, costs)
    for part in _RANGES if costs is not None else _RANGES[:1]:
        grid.lay(part)
        if costs is not None:
            for _ in range(_FITS):
                grid.fit()
    return grid.packed()


class _Grid:
    """The best of what was tried so far: codes [rows, padded K], scales and zero points [rows, blocks]."""

    def __init__(self, weight: Floats, fmt: BlockFormat, start: Quantized, costs: Floats | None) -> None:
        self._fmt = fmt
        self._weight = np.ascontiguousarray(weight, np.float32)
        self._costs = np.ones_like(self._weight) if costs is None else np.ascontiguousarray(costs, np.float32)
        self._codes = codes_of(start, fmt)
        self._scales = start.scales.astype(np.float32)
        self._points = zero_points_of(start, fmt).astype(np.float32)
        self._errors = np.empty(self._scales.shape)
        self._tried = self._codes.copy()
        """Codes of the last grid that was tried, from which the next fit starts."""
        from onnx_tailor.quant import float_points_kernels as kernels  # numba takes long to import

        self._kernels = kernels
        self._size = np.int64(fmt.block_size)
        self._maxq = np.float32((1 << fmt.bits) - 1)
        kernels.measure(self._weight, self._costs, self._scales, self._points, self._size, self._codes, self._errors)

    def lay(self, part: float) -> None:
        """Try the grid that the middle `part` of each block's range asks for."""
        low, high = (np.empty_like(self._scales) for _ in range(2))
        self._kernels.ranges(self._weight, self._size, low, high)
        with np.errstate(over="ignore"):  # such a grid is not tried
            span, middle = (high - low) * np.float32(part), (low + high) * np.float32(0.5)
        self._try(span / self._maxq, span * np.float32(0.5) - middle)

    def fit(self) -> None:
        """Try the grid of least squares for the codes that were tried last."""
        scales, offsets = (np.empty_like(self._scales) for _ in range(2))
        self._kernels.least_squares(self._weight, self._costs, self._size, self._tried, scales, offsets)
        self._try(scales, -offsets)

    def _try(self, scales: Floats, below: Floats) -> None:
        """Round onto the grids whose code 0 stands for -`below`, and keep the blocks that are better for it."""
        with np.errstate(all="ignore"):
            scales = scales.astype(self._fmt.dtype).astype(np.float32)
            points = (below / scales).astype(self._fmt.dtype).astype(np.float32)
        usable = np.isfinite(scales) & (scales != 0) & np.isfinite(points)
        scales, points = np.where(usable, scales, self._scales), np.where(usable, points, self._points)
        errors = np.empty_like(self._errors)
        self._kernels.round_to(self._weight, self._costs, scales, points, self._size, self._maxq, self._tried, errors)
        better = errors < self._errors * _SURELY
        shape = (*scales.shape, self._fmt.block_size)
        self._codes.reshape(shape)[better] = self._tried.reshape(shape)[better]
        self._scales[better], self._points[better], self._errors[better] = (
            scales[better],
            points[better],
            errors[better],
        )

    def packed(self) -> Quantized:
        """Return the blocks as they are stored; the sums are left to who knows the weight's."""
        codes = pack(self._codes.reshape(*self._scales.shape, -1), self._fmt.bits)
        kind = self._fmt.dtype
        return Quantized(codes, self._scales.astype(kind), self._points.astype(kind))
