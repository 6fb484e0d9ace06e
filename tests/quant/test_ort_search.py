"""ONNX Runtime's search, followed to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

from onnx_tailor.quant.lanes import WIDTH, greater, lesser, load, store
from onnx_tailor.quant.ort_search import ort_lines
from onnx_tailor.quant.ort_sums import weigh_by_size


@njit
def _lines(x, block, levels, out):
    w = np.empty((2, block * WIDTH), np.float32)
    for group in range(0, len(x), 2):
        first, second = _group(x[group], w[0], block), _group(x[group + 1], w[1], block)
        for side, line in enumerate(ort_lines(first, second, levels)):
            store(out[group + side, 0], 0, line[0])
            store(out[group + side, 1], 0, line[1])


@njit
def _group(x, w, block):
    weigh_by_size(x, w)
    low = high = load(x, 0)
    for i in range(block):
        value = load(x, i * WIDTH)
        low, high = lesser(low, value), greater(high, value)
    return x, w, low, high


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_same_line_bit_for_bit(bits, block):
    x = np.random.default_rng(bits * block).standard_normal((1600, block)).astype(np.float32)
    x[::3] = np.rint(x[::3] * 2)  # lines that fit exactly, where the last bit decides
    lanes = np.ascontiguousarray(x.reshape(-1, WIDTH, block).transpose(0, 2, 1)).reshape(-1, block * WIDTH)
    out = np.empty((len(lanes), 2, WIDTH), np.float32)
    _lines(lanes, block, (1 << bits) - 1, out)
    scale, minimum = out[:, 0].reshape(-1), out[:, 1].reshape(-1)
    with np.errstate(all="ignore"):
        _, expected, zero = quant_tensor_k_quant_cpu(x, bits, block)
    assert np.array_equal(scale, expected[:, 0].astype(np.float32))
    assert np.array_equal(np.clip(np.rint(-minimum / scale), 0, (1 << bits) - 1), zero[:, 0])
