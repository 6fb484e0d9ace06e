"""What ONNX Runtime's operators read from our bytes is what `dequantize` says, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import quant_reference as reference
from one_operator import SHAPES, TYPES, matmul_nbits, run_constant
from onnx import numpy_helper

from onnx_tailor.quant import BlockFormat, ErrorSums, Quantized, dequantize, quantize


def _weights(rows: int, k: int, dtype: str) -> np.ndarray:
    random = np.random.default_rng(rows * k)
    return (random.standard_normal((rows, k)) * np.exp(random.standard_normal((rows, 1)))).astype(dtype)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("fmt", [*reference.FORMATS, *reference.FLOAT_POINT_FORMATS], ids=reference.name)
def test_matmul_nbits_computes_what_dequantize_says(fmt, kind):
    fmt = replace(fmt, scale_dtype=kind)
    for rows, k in SHAPES:
        result = quantize(_weights(rows, k, kind), fmt, "k_quant")
        assert np.array_equal(matmul_nbits(result, fmt, k, kind), dequantize(result, k, fmt).astype(kind)), (rows, k)


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("fmt", reference.FLOAT_POINT_FORMATS, ids=reference.name)
def test_float_zero_points_of_half_the_bytes_are_computed_exactly(fmt, level):
    """Behind a Cast, beside float32 activations; they and the scales may also have one dimension."""
    fmt = replace(fmt, scale_dtype="float16")
    for rows, k in SHAPES:
        result = quantize(_weights(rows, k, "float32"), fmt, "k_quant")
        for shape in (result.scales.shape, -1):
            flat = replace(result, scales=result.scales.reshape(shape), zero_points=result.zero_points.reshape(shape))
            found = matmul_nbits(flat, fmt, k, "float32", level)
            assert np.array_equal(found, dequantize(result, k, fmt)), (rows, k, shape)


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


def test_the_cpu_takes_no_float_zero_points_of_8_bits():
    """Which is why the format has none; once ONNX Runtime takes them, so can we."""
    codes, scales = np.zeros((1, 1, 32), np.uint8), np.ones((1, 1), np.float32)
    result = Quantized(codes, scales, scales * 1.5, ErrorSums())
    with pytest.raises(Exception, match="Only 2b and 4b"):
        matmul_nbits(result, BlockFormat(8, 32, symmetric=False, scale_dtype="float32"), 32, "float32")
    with pytest.raises(ValueError, match="2 and 4 bits"):
        BlockFormat(8, 32, symmetric=False, scale_dtype="float32", float_points=True)
