"""Quantize and dequantize matrices; the loops are in `kernels`, and `machine_code` brings them."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant.format import SCALE_TYPES, BlockFormat, ErrorSums, Method, NonFiniteError, Quantized
from onnx_tailor.quant.search_plan import NO_SEARCH, plan
from onnx_tailor.quant.workspace import workspace

_KINDS = list(SCALE_TYPES.values())
_Real = TypeVar("_Real", npt.NDArray[np.float32], npt.NDArray[np.float64])


def quantize(
    weight: npt.NDArray[np.generic],
    fmt: BlockFormat,
    method: Method,
    importance: npt.NDArray[np.float32] | None = None,
) -> Quantized:
    """Quantize `weight` [rows, K] along K, on the calling thread and without holding the interpreter's lock.

    `rtn` maps each block's range, zero included, onto the codes. `k_quant` searches scale and zero point for the
    least weighted error of the values as they are stored; it is never above that of `rtn`. A weight's error costs
    `importance` [K] (llama.cpp's imatrix: the mean square of the inputs that meet the column), 1 in blocks where that
    is zero throughout, and without it rms(block) + |x|, as in llama.cpp. `rtn` takes no notice of it.
    A weight of float32, float16 or bfloat16 is read as it lies, by rows or (a transposed array) by columns.
    With float zero points each block is at least as good as with integers.

    Raises:
        NonFiniteError: the weight holds a NaN or an infinity.
        ValueError: importance is not K finite values of at least zero.
    """
    if fmt.float_points:
        return _with_float_points(weight, fmt, method, importance)
    rows, k = weight.shape
    source, kind, by_columns = _as_bytes(weight)
    blocks = fmt.blocks(k)
    codes = np.empty((rows, blocks, fmt.blob_bytes), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    points = np.zeros((rows, fmt.zero_point_row_bytes(k)), np.uint8)
    sums = np.zeros(2)
    costs = _checked(importance, k)
    searching = NO_SEARCH
    if method == "k_quant":
        searching = plan(fmt.bits, symmetric=fmt.symmetric, weighted=importance is not None)
    shape = (fmt.bits, fmt.block_size, fmt.symmetric, _KINDS.index(fmt.dtype), rows, k)
    tries = (searching.scales, searching.around, searching.near, searching.beside, searching.refits)
    integers = np.array((source.nbytes, kind, by_columns, costs.nbytes, *shape, *tries), np.int64)
    steps = np.array((searching.lowest, searching.step, searching.near_step))
    memory = workspace(fmt.block_size, fmt.bits)
    finite = _call(source, costs, integers, steps, codes, scales, points, sums, *memory)
    if not finite:
        row, column = map(int, np.argwhere(~np.isfinite(weight.astype(np.float32)))[0])
        raise NonFiniteError(row, column, float(weight[row, column]))
    stored = scales.astype(fmt.dtype, copy=False)
    return Quantized(codes, stored, None if fmt.symmetric else points, ErrorSums(float(sums[0]), float(sums[1])))


def _with_float_points(
    weight: npt.NDArray[np.generic], fmt: BlockFormat, method: Method, importance: npt.NDArray[np.float32] | None
) -> Quantized:
    from onnx_tailor.quant.float_points import with_float_points  # it needs this module

    start = quantize(weight, replace(fmt, float_points=False), method, importance)
    x = np.ascontiguousarray(weight, np.float32)
    found = with_float_points(x, fmt, start, None if method == "rtn" else costs_of(x, fmt, importance))
    return replace(found, sums=error_sums(x, found, fmt))


def _call(*arrays: npt.NDArray[np.generic]) -> bool:
    """Call the kernel; see `entry`."""
    from onnx_tailor.quant.machine_code import kernel  # most commands never quantize

    result, error = np.zeros(1, np.int64), np.zeros(1, np.int64)
    status = kernel()(*(array.__array_interface__["data"][0] for array in (result, error, *arrays)))
    assert status == 0
    return bool(result[0])


def _as_bytes(weight: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.uint8], int, bool]:
    """Return the weight's bytes, its type as an index of `_KINDS`, and whether they go by columns."""
    if weight.dtype not in _KINDS:
        weight = weight.astype(np.float32)
    by_columns = weight.flags.f_contiguous and not weight.flags.c_contiguous
    rows = np.ascontiguousarray(weight.T if by_columns else weight)
    return rows.reshape(-1).view(np.uint8), _KINDS.index(weight.dtype), by_columns


def _checked(importance: npt.NDArray[np.float32] | None, k: int) -> npt.NDArray[np.float32]:
    """Return the importance of K columns, empty where there is none.

    Raises:
        ValueError: it is not K finite values of at least zero.
    """
    if importance is None:
        return np.empty(0, np.float32)
    costs = np.ascontiguousarray(importance, np.float32)
    if costs.shape != (k,) or not bool(np.all((costs >= 0) & (costs < np.inf))):
        raise ValueError(f"importance must be {k} finite values of at least zero, one for each column")
    return costs


def unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return the values of `bits` bits in the last axis of `packed`, lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return values.reshape(*packed.shape[:-1], -1)


def dequantize(quantized: Quantized, k: int, fmt: BlockFormat) -> npt.NDArray[np.float32]:
    """Return the values [rows, K] that ONNX Runtime's CPU computes in float32.

    (code - zero point) * scale; where zero points are float, code * scale - zero point * scale.
    """
    rows, blocks = quantized.scales.shape
    codes = unpack(quantized.codes, fmt.bits).astype(np.float32)
    scales = quantized.scales.astype(np.float32)[..., None]
    if fmt.float_points and quantized.zero_points is not None:
        values = codes * scales - quantized.zero_points.astype(np.float32)[..., None] * scales
        return values.reshape(rows, -1)[:, :k]
    if quantized.zero_points is None:
        points = np.full((rows, blocks), 1 << fmt.bits - 1, np.float32)
    else:
        points = unpack(quantized.zero_points.view(np.uint8), fmt.bits)[:, :blocks].astype(np.float32)
    values = (codes - points[..., None]) * scales
    return values.reshape(rows, -1)[:, :k]


def error_sums(weight: npt.NDArray[np.float32], quantized: Quantized, fmt: BlockFormat) -> ErrorSums:
    """Return how far the values of `quantized` are from `weight` [rows, K], for codes that were changed since."""
    x = weight.astype(np.float64)
    difference = dequantize(quantized, weight.shape[1], fmt).astype(np.float64) - x
    return ErrorSums(float(np.sum(difference**2)), float(np.sum(x**2)))


def weighted_error(
    weight: npt.NDArray[np.float32],
    quantized: Quantized,
    fmt: BlockFormat,
    importance: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float64]:
    """Return k-quant's measure for each block [rows, blocks]: the sum of cost * (value - x)^2.

    The cost is `importance` [K] as `quantize` takes it, or rms(block) + |x| without.
    """
    x = _blocks(weight, fmt).astype(np.float64)
    value = _blocks(dequantize(quantized, weight.shape[1], fmt), fmt).astype(np.float64)
    cost = _costs(x, importance, fmt)
    error: npt.NDArray[np.float64] = np.sum(cost * (value - x) ** 2, axis=2)
    return error


def costs_of(
    weight: npt.NDArray[np.float32], fmt: BlockFormat, importance: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.float32]:
    """Return what an error in each element of `weight` [rows, K] costs in `weighted_error`, in float32."""
    x = _blocks(weight, fmt)
    with np.errstate(over="ignore"):
        costs = np.broadcast_to(_costs(x, importance, fmt), x.shape)
    return np.ascontiguousarray(costs.reshape(len(weight), -1)[:, : weight.shape[1]])


def _costs(x: _Real, importance: npt.NDArray[np.float32] | None, fmt: BlockFormat) -> _Real:
    """Return the costs, [rows or 1, blocks, block_size], of elements `x` [rows, blocks, block_size] in their type."""
    if importance is None:
        squares = np.einsum("rbk,rbk->rb", x, x, dtype=np.float64)  # those of small numbers are none in float32
        found: _Real = np.sqrt(squares / fmt.block_size).astype(x.dtype)[..., None] + np.abs(x)
        return found
    costs = _blocks(importance[None], fmt).astype(x.dtype)
    return np.where(costs.any(axis=2, keepdims=True), costs, x.dtype.type(1))


def _blocks(matrix: npt.NDArray[np.float32], fmt: BlockFormat) -> npt.NDArray[np.float32]:
    """Return [rows, K] as [rows, blocks, block_size], padded with zeros."""
    rows, k = matrix.shape
    missing = fmt.blocks(k) * fmt.block_size - k
    padded = np.pad(matrix, ((0, 0), (0, missing))) if missing else matrix
    return padded.reshape(rows, fmt.blocks(k), fmt.block_size)
