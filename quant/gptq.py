"""Quantization that lets the columns still to come make up for each column's error.

GPTQ (Frantar et al., arXiv:2210.17323), its columns in the order of their use, on grids fixed beforehand, so that the
blocks stay where the operators expect them; then coordinate descent on the codes and least squares for the scales.
All of it lowers trace((Q - W) H (Q - W)^T), the squared error of the projection's outputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant.format import BlockFormat, Quantized
from onnx_tailor.quant.hessian import Factor
from onnx_tailor.quant.packing import codes_of, pack
from onnx_tailor.quant.quantize import error_sums, quantize, require_finite, zero_points_of

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

_PANEL = 128
"""Columns between two updates of all that follow."""
_ROUNDS = 2
"""Times that codes and scales are refined in turn."""
_SWEEPS = 4
_RIDGE = 1e-4
_SYSTEMS = 1 << 22
"""Elements of the rows' linear systems that are solved at once."""


def gptq(weight: npt.NDArray[np.generic], fmt: BlockFormat, factor: Factor, importance: Floats) -> Quantized:
    """Quantize `weight` [rows, K] for inputs of which `factor` knows the second moments; rows do not interact.

    The grids are those of k-quant weighted by `importance` [K], and no row ends with a greater error than k-quant's.
    Where `factor` knows how the inputs drift, weights that make up for it are rounded in the place of these.

    Raises:
        NonFiniteError: the weight holds a NaN or an infinity.
    """
    if factor.shift is None:
        start = quantize(weight, fmt, "k_quant", importance)
        return refine(weight.astype(np.float32), fmt, factor, start)
    own = weight.astype(np.float32)
    require_finite(weight)
    shifted = own + own @ factor.shift
    found = refine(shifted, fmt, factor, quantize(shifted, fmt, "k_quant", importance))
    return replace(found, sums=error_sums(own, found, fmt))


def refine(weight: Floats, fmt: BlockFormat, factor: Factor, start: Quantized) -> Quantized:
    """Return `start` or better, row by row."""
    grid = _Grid(np.ascontiguousarray(weight, np.float32), fmt, factor, start)
    before, codes, scales = grid.errors(), grid.codes.copy(), grid.scales.copy()
    grid.round_in_order()
    for _ in range(_ROUNDS):
        grid.descend()
        grid.fit_scales()
    grid.descend()
    worse = ~(grid.errors() <= before)
    grid.codes[worse], grid.scales[worse] = codes[worse], scales[worse]
    return grid.pack(start)


class _Grid:
    """Codes and scales of some rows, while they change. The zero points stay."""

    def __init__(self, weight: Floats, fmt: BlockFormat, factor: Factor, start: Quantized) -> None:
        self._weight = weight
        self._fmt = fmt
        self._factor = factor
        self._points = zero_points_of(start, fmt)
        self._maxq = np.float32((1 << fmt.bits) - 1)
        self.codes = codes_of(start, fmt)
        """[rows, blocks * block_size] uint8"""
        self.scales = start.scales.astype(np.float32)
        """[rows, blocks]"""

    def errors(self) -> Floats:
        """Return (q - w) H (q - w)^T of each row [rows]."""
        difference = self._difference()
        result: Floats = np.einsum("rk,rk->r", difference @ self._factor.hessian, difference)
        return result

    def round_in_order(self) -> None:
        """Choose all codes anew, column by column."""
        from onnx_tailor.quant import gptq_kernels as kernels  # numba takes long to import

        order, upper, size = self._factor.order, self._factor.upper, np.int64(self._fmt.block_size)
        work = np.take(self._weight, order, axis=1)  # by rows; indexing would leave it by columns
        rows, k = work.shape
        for start in range(0, k, _PANEL):
            stop = min(start + _PANEL, k)
            errors = np.empty((rows, stop - start), np.float32)
            kernels.round_columns(
                work, upper, order, start, stop, self.scales, self._points, size, self._maxq, self.codes, errors
            )
            if stop < k:
                work[:, stop:] -= errors @ upper[start:stop, stop:]

    def descend(self) -> None:
        """Move single codes while that helps."""
        from onnx_tailor.quant import gptq_kernels as kernels

        hessian = self._factor.hessian
        gradient = self._difference() @ hessian
        size = np.int64(self._fmt.block_size)
        kernels.descend(gradient, hessian, self.scales, size, self._maxq, self.codes, _SWEEPS)

    def fit_scales(self) -> None:
        """Set each row's scales to the least squares for its codes, as far as they stay near and can be stored."""
        blocks = self.scales.shape[1]
        step = max(1, _SYSTEMS // blocks**2)
        for at in range(0, len(self.scales), step):
            part = slice(at, at + step)
            self.scales[part] = self._fitted(part)

    def _fitted(self, part: slice) -> Floats:
        hessian, size, k = self._factor.hessian, self._fmt.block_size, self._weight.shape[1]
        scales = self.scales[part]
        rows, blocks = scales.shape
        levels = self._levels(part)
        normal = np.empty((rows, blocks, blocks), np.float32)
        starts = np.arange(0, k, size)
        flat = levels.reshape(rows, -1)[:, :k]
        for block in range(blocks):
            columns = slice(block * size, min((block + 1) * size, k))
            product = (flat[:, columns] @ hessian[columns]) * flat
            normal[:, block] = np.add.reduceat(product, starts, axis=1)
        # The system is solved for the change, which is small where float32 would lose the scales themselves.
        slope = (self._difference(part) @ hessian) * flat
        right = -np.add.reduceat(slope, starts, axis=1)
        diagonal = np.einsum("rbb->rb", normal)
        diagonal += _RIDGE * diagonal + np.float32(1e-12) * diagonal.max(axis=1, keepdims=True) + np.float32(1e-20)
        change = np.linalg.solve(normal, right[..., None])[..., 0]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            stored = (scales + change).astype(self._fmt.dtype).astype(np.float32)
            ratio = stored / scales
        near = (ratio > 0.5) & (ratio < 2) & np.isfinite(stored)
        return np.where(near, stored, scales)

    def _levels(self, part: slice = slice(None)) -> Floats:
        """Return code - zero point [rows, blocks, block_size]."""
        codes = self.codes[part].astype(np.float32)
        rows, blocks = self.scales[part].shape
        codes = codes.reshape(rows, blocks, -1)
        codes -= self._points[part][..., None]
        return codes

    def _difference(self, part: slice = slice(None)) -> Floats:
        """Return value - weight [rows, K]."""
        values = self._levels(part)
        values *= self.scales[part][..., None]
        result: Floats = values.reshape(len(values), -1)[:, : self._weight.shape[1]] - self._weight[part]
        return result

    def pack(self, start: Quantized) -> Quantized:
        """Return the rows as they are stored, with the zero points of `start`."""
        shape = (*self.scales.shape, self._fmt.block_size)
        codes = pack(self.codes.reshape(shape), self._fmt.bits)
        result = Quantized(codes, self.scales.astype(self._fmt.dtype), start.zero_points, start.sums)
        sums = error_sums(self._weight, result, self._fmt)
        return Quantized(result.codes, result.scales, result.zero_points, sums)
