"""Codes between one a byte and the packed form of the operators."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant.format import BlockFormat, Quantized
from onnx_tailor.quant.order import row_major
from onnx_tailor.quant.quantize import unpack


def pack(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return `values`, each below 2^bits, packed along the last axis, lowest bits first; the inverse of `unpack`."""
    each = 8 // bits
    missing = -values.shape[-1] % each
    if missing:
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
    parts = values.reshape(*values.shape[:-1], -1, each) << np.arange(0, 8, bits, dtype=np.uint8)
    packed: npt.NDArray[np.uint8] = np.bitwise_or.reduce(parts, axis=-1)
    return packed


def transpose(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return packed values [N, K] as packed values [K, N]; K and N are multiples of 8/bits, and fill whole bytes."""
    each, mask = 8 // bits, np.uint8((1 << bits) - 1)
    lines = row_major(packed.T)
    if each == 1:
        return lines
    result = np.zeros((len(lines), each, lines.shape[1] // each), np.uint8)
    for column in range(each):  # of those that share a byte before
        for row in range(each):  # of those that share one afterwards
            values = lines[:, row::each] >> np.uint8(column * bits) & mask
            result[:, column] |= values << np.uint8(row * bits)
    return result.reshape(len(lines) * each, -1)


def codes_of(quantized: Quantized, fmt: BlockFormat) -> npt.NDArray[np.uint8]:
    """Return the codes [rows, blocks * block_size], one a byte."""
    return unpack(quantized.codes, fmt.bits).reshape(len(quantized.codes), -1)
