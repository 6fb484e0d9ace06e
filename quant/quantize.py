"""Quantize and dequantize matrices; the loops are in `kernels`, compiled at the first use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant.format import SCALE_TYPES, BlockFormat, Method, NonFiniteError, Quantized


def quantize(weight: npt.NDArray[np.float32], fmt: BlockFormat, method: Method) -> Quantized:
    """Quantize `weight` [rows, K] along K, on the calling thread and without holding the interpreter's lock.

    `rtn` maps each block's range, zero included, onto the codes. `k_quant` searches scale and zero point for the
    least error weighted by rms(block) + |x| (llama.cpp), judged with the scale as it is stored; its error is never
    above that of `rtn`.

    Raises:
        NonFiniteError: the weight holds a NaN or an infinity.
    """
    from onnx_tailor.quant import kernels  # numba takes long to import, and most commands never quantize

    rows, k = weight.shape
    blocks = fmt.blocks(k)
    codes = np.empty((rows, blocks, fmt.blob_bytes), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    points = np.zeros((rows, fmt.zero_point_row_bytes(k)), np.uint8)
    kind = list(SCALE_TYPES).index(fmt.scale_dtype)
    bad = kernels.quantize_rows(
        np.ascontiguousarray(weight, np.float32),
        np.int64(fmt.bits),
        np.int64(fmt.block_size),
        fmt.symmetric,
        method == "k_quant",
        np.int64(kind),
        codes,
        scales,
        points,
    )
    if bad >= 0:
        row, column = divmod(int(bad), k)
        raise NonFiniteError(row, column, float(weight[row, column]))
    return Quantized(codes, scales.astype(fmt.dtype, copy=False), None if fmt.symmetric else points)


def unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return the values of `bits` bits in the last axis of `packed`, lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return values.reshape(*packed.shape[:-1], -1)


def dequantize(quantized: Quantized, k: int, fmt: BlockFormat) -> npt.NDArray[np.float32]:
    """Return the values [rows, K] that ONNX Runtime computes: (code - zero point) * scale in float32."""
    rows, blocks = quantized.scales.shape
    codes = unpack(quantized.codes, fmt.bits).astype(np.float32)
    if quantized.zero_points is None:
        points = np.full((rows, blocks), 1 << fmt.bits - 1, np.float32)
    else:
        points = unpack(quantized.zero_points, fmt.bits)[:, :blocks].astype(np.float32)
    values = (codes - points[..., None]) * quantized.scales.astype(np.float32)[..., None]
    return values.reshape(rows, -1)[:, :k]


def weighted_error(weight: npt.NDArray[np.float32], quantized: Quantized, fmt: BlockFormat) -> npt.NDArray[np.float64]:
    """Return k-quant's measure for each block [rows, blocks]: the sum of (rms(block) + |x|) * (value - x)^2."""
    rows, k = weight.shape
    shape = (rows, fmt.blocks(k), fmt.block_size)
    padding = ((0, 0), (0, shape[1] * shape[2] - k))
    x = np.pad(weight.astype(np.float64), padding).reshape(shape)
    value = np.pad(dequantize(quantized, k, fmt).astype(np.float64), padding).reshape(shape)
    importance = np.sqrt(np.mean(x**2, axis=2, keepdims=True)) + np.abs(x)
    error: npt.NDArray[np.float64] = np.sum(importance * (value - x) ** 2, axis=2)
    return error
