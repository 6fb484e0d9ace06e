"""Quantize and dequantize matrices; the loops are in `kernels`, and `machine_code` brings them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant.format import SCALE_TYPES, BlockFormat, ErrorSums, Method, NonFiniteError, Quantized
from onnx_tailor.quant.search_plan import NO_SEARCH, plan
from onnx_tailor.quant.workspace import workspace

_KINDS = list(SCALE_TYPES.values())


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
    Float zero points start from these grids, and no block ends with a greater error: `rtn` then maps the block's own
    range onto the codes, `k_quant` fits scale and zero point to the codes by least squares.
    A weight of float32, float16 or bfloat16 is read as it lies, by rows or (a transposed array) by columns.

    Raises:
        NonFiniteError: the weight holds a NaN or an infinity.
        ValueError: importance is not K finite values of at least zero.
    """
    rows, k = weight.shape
    source, kind, by_columns = _as_bytes(weight)
    blocks = fmt.blocks(k)
    codes = np.empty((rows, blocks, fmt.blob_bytes), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    packed = np.zeros((rows, fmt.zero_point_row_bytes(k)), np.uint8)
    floats = np.empty((rows, blocks if fmt.float_points else 0), np.float32)
    sums = np.zeros(2)
    costs = _checked(importance, k)
    searching = NO_SEARCH
    if method == "k_quant":
        searching = plan(fmt.bits, symmetric=fmt.symmetric, weighted=importance is not None)
    shape = (fmt.bits, fmt.block_size, fmt.symmetric, fmt.float_points, _KINDS.index(fmt.dtype), rows, k)
    tries = (searching.scales, searching.around, searching.near, searching.beside, searching.refits)
    integers = np.array((source.nbytes, kind, by_columns, costs.nbytes, *shape, *tries), np.int64)
    steps = np.array((searching.lowest, searching.step, searching.near_step))
    memory = workspace(fmt.block_size, fmt.bits)
    finite = _call(source, costs, integers, steps, codes, scales, packed, floats, sums, *memory)
    if not finite:
        require_finite(weight)
    points = None if fmt.symmetric else floats.astype(fmt.dtype, copy=False) if fmt.float_points else packed
    return Quantized(codes, scales.astype(fmt.dtype, copy=False), points, ErrorSums(float(sums[0]), float(sums[1])))


def require_finite(weight: npt.NDArray[np.generic]) -> None:
    """See that a weight [rows, K] can be quantized.

    Raises:
        NonFiniteError: it holds a NaN or an infinity.
    """
    odd = np.argwhere(~np.isfinite(weight.astype(np.float32)))
    if len(odd):
        row, column = map(int, odd[0])
        raise NonFiniteError(row, column, float(weight[row, column]))


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
    """Return the values [rows, K] that ONNX Runtime computes, in float32.

    That is (code - zero point) * scale, and with float zero points code * scale - zero point * scale.
    """
    codes = unpack(quantized.codes, fmt.bits).astype(np.float32)
    scales, points = quantized.scales.astype(np.float32)[..., None], zero_points_of(quantized, fmt)[..., None]
    values = codes * scales - points * scales if fmt.float_points else (codes - points) * scales
    return values.reshape(len(values), -1)[:, :k]


def zero_points_of(quantized: Quantized, fmt: BlockFormat) -> npt.NDArray[np.float32]:
    """Return the zero points [rows, blocks], 2^(bits-1) where none are stored."""
    points, (rows, blocks) = quantized.zero_points, quantized.scales.shape
    if points is None:
        return np.full((rows, blocks), 1 << fmt.bits - 1, np.float32)
    if fmt.float_points:
        return points.astype(np.float32)
    return unpack(points.view(np.uint8), fmt.bits)[:, :blocks].astype(np.float32)


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
    rows, k = weight.shape
    shape = (rows, fmt.blocks(k), fmt.block_size)
    padding = ((0, 0), (0, shape[1] * shape[2] - k))
    x = np.pad(weight.astype(np.float64), padding).reshape(shape)
    value = np.pad(dequantize(quantized, k, fmt).astype(np.float64), padding).reshape(shape)
    if importance is None:
        cost = np.sqrt(np.mean(x**2, axis=2, keepdims=True)) + np.abs(x)
    else:
        cost = np.pad(importance.astype(np.float64)[None], padding).reshape(1, *shape[1:])
        cost = np.where(cost.any(axis=2, keepdims=True), cost, 1.0)
    error: npt.NDArray[np.float64] = np.sum(cost * (value - x) ** 2, axis=2)
    return error
