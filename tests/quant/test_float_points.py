"""Zero points in float: never worse than integers, on ordinary weights and on the worst that a file can hold."""

from __future__ import annotations

import numpy as np
import pytest
import quant_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from one_operator import SHAPES, matmul_nbits
from quant_inputs import importances, weights

from onnx_tailor.quant import (
    Bits,
    BlockFormat,
    Factor,
    NonFiniteError,
    dequantize,
    factorize,
    gptq,
    quantize,
    weighted_error,
)
from onnx_tailor.quant.packing import codes_of, zero_points_of

TOLERANCE = 1e-5
"""Relative, of errors compared: an integer zero point that is stored in float is multiplied out, which rounds anew."""


def in_float(bits: Bits, block_size: int, scale_dtype: str) -> BlockFormat:
    return BlockFormat(bits, block_size, symmetric=False, scale_dtype=scale_dtype, float_points=True)


formats = st.builds(
    in_float, st.sampled_from([2, 4]), st.sampled_from([16, 32, 64]), st.sampled_from(reference.SCALE_TYPES)
)


def integer(fmt: BlockFormat) -> BlockFormat:
    return BlockFormat(fmt.bits, fmt.block_size, symmetric=False, scale_dtype=fmt.scale_dtype)


def gaussian(rows: int = 8, k: int = 200) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((rows, k), np.float32)


@settings(max_examples=300, deadline=None)
@given(st.data(), weights(), formats)
def test_no_block_is_worse_than_with_integers(data, x, fmt):
    importance = data.draw(importances(x.shape[1]))
    found, plain = quantize(x, fmt, "k_quant", importance), quantize(x, integer(fmt), "k_quant", importance)
    assert np.isfinite(found.scales.astype(np.float32)).all()
    assert np.isfinite(found.zero_points.astype(np.float32)).all()
    ours = weighted_error(x, found, fmt, importance)
    theirs = weighted_error(x, plain, integer(fmt), importance)
    assert np.all(ours <= theirs * (1 + TOLERANCE) + reference.slack(x, fmt, importance))


@settings(max_examples=200, deadline=None)
@given(weights(), formats)
def test_plain_rounding_is_no_worse_either(x, fmt):
    ones = np.ones(x.shape[1], np.float32)
    found, plain = quantize(x, fmt, "rtn"), quantize(x, integer(fmt), "rtn")
    ours, theirs = weighted_error(x, found, fmt, ones), weighted_error(x, plain, integer(fmt), ones)
    assert np.all(ours <= theirs * (1 + TOLERANCE) + reference.slack(x, fmt, ones))


@pytest.mark.parametrize("bits", [2, 4])
def test_plain_rounding_puts_the_ends_of_the_range_on_the_first_and_the_last_code(bits):
    x = gaussian(4, 96) + 10  # so far from zero that integers are far behind
    fmt = in_float(bits, 32, "float32")
    found = quantize(x, fmt, "rtn")
    blocks = x.reshape(4, 3, 32)
    low, high = blocks.min(2), blocks.max(2)
    np.testing.assert_allclose(found.scales, (high - low) / (2**bits - 1), rtol=1e-6)
    np.testing.assert_allclose(-found.zero_points * found.scales, low, rtol=1e-6)
    codes = codes_of(found, fmt).reshape(blocks.shape)
    assert np.all(np.take_along_axis(codes, blocks.argmin(2)[..., None], 2) == 0)
    assert np.all(np.take_along_axis(codes, blocks.argmax(2)[..., None], 2) == 2**bits - 1)


def test_levels_between_the_integers_are_met():
    """Four levels about zero, none of which is zero, need a zero point of 1.5."""
    x = np.random.default_rng(1).choice(np.array([-3, -1, 1, 3], np.float32), (16, 128)) / 8
    fmt = in_float(2, 32, "float16")
    assert np.array_equal(dequantize(quantize(x, fmt, "k_quant"), 128, fmt), x)
    assert quantize(x, integer(fmt), "k_quant").sums.squared_error > 0


@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_search_ends_below_rounding_and_integers(size):
    x, fmt = gaussian(), in_float(4, size, "float16")
    searched, rounded = quantize(x, fmt, "k_quant").sums, quantize(x, fmt, "rtn").sums
    assert searched.squared_error < 0.9 * rounded.squared_error
    assert searched.squared_error < 0.9 * quantize(x, integer(fmt), "k_quant").sums.squared_error


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("size", [16, 32, 128])
def test_matmul_nbits_computes_what_dequantize_says(bits, size, kind):
    fmt = in_float(bits, size, kind)
    for rows, k in SHAPES:
        x = gaussian(rows, k).astype(kind)
        result = quantize(x, fmt, "k_quant")
        assert result.zero_points.dtype == np.dtype(kind)
        assert np.array_equal(matmul_nbits(result, fmt, k, kind), dequantize(result, k, fmt).astype(kind)), (rows, k)


def test_columns_and_parts_give_the_same_bytes():
    x, fmt = gaussian(12, 160), in_float(4, 32, "float16")
    whole = quantize(x, fmt, "k_quant")
    turned = quantize(np.asfortranarray(x), fmt, "k_quant")
    parts = [quantize(x[i : i + 5], fmt, "k_quant") for i in range(0, 12, 5)]
    for name in ("codes", "scales", "zero_points"):
        assert np.array_equal(getattr(whole, name), getattr(turned, name))
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_no_code_can_stand_for(value):
    x = gaussian()
    x[5, 77] = value
    with pytest.raises(NonFiniteError) as error:
        quantize(x, in_float(4, 32, "float32"), "rtn")
    assert (error.value.row, error.value.column) == (5, 77)


def factor_of(k: int) -> Factor:
    inputs = np.random.default_rng(4).standard_normal((4 * k, k)) @ np.random.default_rng(5).standard_normal((k, k))
    return factorize((inputs.T @ inputs / len(inputs)).astype(np.float32))


def test_gptq_keeps_the_zero_points_and_gains():
    x, fmt = gaussian(16, 96), in_float(4, 32, "float16")
    factor = factor_of(96)
    importance = np.diag(factor.hessian).copy()

    def error(values):
        difference = values - x
        return float(np.einsum("rk,kl,rl->", difference, factor.hessian, difference))

    start, found = quantize(x, fmt, "k_quant", importance), gptq(x, fmt, factor, importance)
    assert np.array_equal(found.zero_points, start.zero_points)
    plain = gptq(x, integer(fmt), factor, importance)
    errors = [error(dequantize(q, 96, f)) for q, f in ((found, fmt), (plain, integer(fmt)), (start, fmt))]
    assert errors[0] < errors[1] < errors[2]
    assert zero_points_of(found, fmt).dtype == np.float16


def test_symmetric_blocks_have_none():
    with pytest.raises(ValueError, match="no zero points"):
        BlockFormat(4, 32, symmetric=True, scale_dtype="float32", float_points=True)
