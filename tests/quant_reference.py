"""Slow and plain implementations to test the kernels against, written without them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant import BlockFormat, Quantized

FORMATS = [
    BlockFormat(bits, block_size, symmetric, "float32")
    for bits in (2, 4, 8)
    for block_size in (16, 32, 64, 128, 256)
    for symmetric in (False, True)
]
FLOAT_POINT_FORMATS = [
    BlockFormat(bits, block_size, symmetric=False, scale_dtype="float32", float_points=True)
    for bits in (2, 4)
    for block_size in (16, 32, 64, 128, 256)
]
SCALE_TYPES = ("float32", "float16", "bfloat16")


def name(fmt: BlockFormat) -> str:
    """Return a short name for a test's id."""
    points = "sym" if fmt.symmetric else "float" if fmt.float_points else "asym"
    return f"{fmt.bits}bit-{fmt.block_size}-{points}-{fmt.scale_dtype}"


def blocks(x: npt.NDArray[np.generic], fmt: BlockFormat) -> npt.NDArray[np.float64]:
    """Return the weights [rows, blocks, block_size], padded with zeros."""
    rows, k = x.shape
    count = fmt.blocks(k)
    result = np.zeros((rows, count * fmt.block_size))
    result[:, :k] = x
    return result.reshape(rows, count, fmt.block_size)


def rtn(x: npt.NDArray[np.generic], fmt: BlockFormat) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return scales and zero points [rows, blocks] of plain rounding, the range including zero.

    The range and its division are rounded to float32, as ONNX Runtime's quantizer does: one step of the scale more or
    less changes the error of an 8-bit block by some hundred-thousandths. A power of two keeps huge ranges finite.
    """
    values = blocks(x, fmt)
    low, high = np.minimum(values.min(2), 0), np.maximum(values.max(2), 0)
    maxq = (1 << fmt.bits) - 1
    with np.errstate(all="ignore"):
        if fmt.symmetric:
            half = 1 << fmt.bits - 1
            scale = stored(-np.where(-low > high, low, high) / half, fmt)
            return scale, np.full_like(scale, half)
        unit = 2.0 ** np.frexp(np.maximum(-low, high))[1]
        span = (high / unit).astype(np.float32) - (low / unit).astype(np.float32)
        scale = stored((span / np.float32(maxq)).astype(np.float64) * unit, fmt)
        return scale, np.clip(np.rint(-low / scale), 0, maxq)


def stored(scale: npt.NDArray[np.float64], fmt: BlockFormat) -> npt.NDArray[np.float64]:
    """Return the scales as their type holds them, at most so large that no code's value is infinite.

    Scales that are denormal floats, which many processors take as zero, are zero.
    """
    limit = min(65504.0 if fmt.scale_dtype == "float16" else np.inf, 2.0 ** (128 - fmt.bits))
    if fmt.scale_dtype != "float16":
        scale = np.where(np.abs(scale) < 2.0**-126, 0, scale)
    return np.clip(scale, -limit, limit).astype(fmt.dtype).astype(np.float64)


def grid_error(
    x: npt.NDArray[np.generic],
    scale: npt.NDArray[np.float64],
    zero: npt.NDArray[np.float64],
    fmt: BlockFormat,
    importance: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float64]:
    """Return the weighted error [rows, blocks] of a grid, each weight at its nearest code; infinite for scale 0."""
    values, maxq = blocks(x, fmt), (1 << fmt.bits) - 1
    with np.errstate(all="ignore"):
        code = np.clip(np.rint(values / scale[..., None]), -zero[..., None], maxq - zero[..., None])
        error = np.sum(costs(x, fmt, importance) * (code * scale[..., None] - values) ** 2, axis=2)
    return np.where(scale == 0, np.inf, error)


def costs(
    x: npt.NDArray[np.generic], fmt: BlockFormat, importance: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float64]:
    """Return what each weight's error costs."""
    values = blocks(x, fmt)
    if importance is None:
        return np.sqrt(np.mean(values**2, axis=2, keepdims=True)) + np.abs(values)
    cost = blocks(importance[None], fmt)
    return np.where(cost.any(axis=2, keepdims=True), cost, 1.0)


def pack(values: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint8]:
    """Pack the last axis one value after the other, lowest bits first, into whole bytes."""
    flat = values.reshape(-1, values.shape[-1])
    result = np.zeros((len(flat), -(-flat.shape[1] * bits // 8)), np.uint8)
    for row, line in enumerate(flat):
        for i, value in enumerate(line):
            result[row, i * bits // 8] |= int(value) << (i * bits % 8)
    return result.reshape(*values.shape[:-1], -1)


def unpack(packed: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.int64]:
    """Undo `pack`."""
    flat = packed.reshape(-1, packed.shape[-1])
    result = [[int(line[i * bits // 8]) >> (i * bits % 8) & ((1 << bits) - 1) for i in range(count)] for line in flat]
    return np.array(result, np.int64).reshape(*packed.shape[:-1], count)


def grid(result: Quantized, fmt: BlockFormat) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return scales and zero points [rows, blocks] of a quantized matrix."""
    scale = result.scales.astype(np.float64)
    if result.zero_points is None:
        return scale, np.full_like(scale, 1 << fmt.bits - 1)
    if fmt.float_points:
        return scale, result.zero_points.astype(np.float64)
    return scale, unpack(result.zero_points, fmt.bits, scale.shape[1]).astype(np.float64)


def values(result: Quantized, k: int, fmt: BlockFormat) -> npt.NDArray[np.float64]:
    """Return the stored values [rows, K] in float64."""
    scale, zero = grid(result, fmt)
    codes = unpack(result.codes, fmt.bits, fmt.block_size)
    full = (codes - zero[..., None]) * scale[..., None]
    return full.reshape(len(full), -1)[:, :k]


def slack(x: npt.NDArray[np.generic], fmt: BlockFormat, importance: np.ndarray | None) -> np.ndarray:
    """Return what float32 cannot tell: a part of the weighted squares, and what lies below the least normal float."""
    squares = np.sum(costs(x, fmt, importance) * blocks(x, fmt) ** 2, axis=2)
    scale_steps = np.sum(costs(x, fmt, importance), axis=2) * (2.0**-126) ** 2
    return 1e-12 * squares + scale_steps
