"""What ONNX Runtime's operators read from our bytes is what `dequantize` says, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import quant_reference as reference
from one_operator import SHAPES, TYPES, matmul_nbits, run_constant
from onnx import numpy_helper

from onnx_tailor.quant import BlockFormat, dequantize, quantize


def _weights(rows: int, k: int, dtype: str) -> np.ndarray:
    random = np.random.default_rng(rows * k)
    return (random.standard_normal((rows, k)) * np.exp(random.standard_normal((rows, 1)))).astype(dtype)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("fmt", reference.FORMATS, ids=reference.name)
def test_matmul_nbits_computes_what_dequantize_says(fmt, kind):
    fmt = BlockFormat(fmt.bits, fmt.block_size, fmt.symmetric, kind)
    for rows, k in SHAPES:
        result = quantize(_weights(rows, k, kind), fmt, "k_quant")
        assert np.array_equal(matmul_nbits(result, fmt, k, kind), dequantize(result, k, fmt).astype(kind)), (rows, k)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("fmt", reference.FORMATS, ids=reference.name)
def test_gather_block_quantized_computes_what_dequantize_says(fmt, kind):
    fmt = BlockFormat(fmt.bits, fmt.block_size, fmt.symmetric, kind)
    for rows, k in SHAPES:
        result = quantize(_weights(rows, k, kind), fmt, "rtn")
        codes = numpy_helper.from_array(result.codes.reshape(rows, -1), "data")  # K padded to whole blocks
        ids = np.arange(rows)[::-1].copy()
        attributes = {"bits": fmt.bits, "block_size": fmt.block_size, "gather_axis": 0, "quantize_axis": 1}
        out = run_constant(
            "GatherBlockQuantized", [codes, numpy_helper.from_array(ids, "ids")], result, kind, attributes
        )
        assert np.array_equal(out[:, :k], dequantize(result, k, fmt).astype(kind)[ids]), (rows, k)
