"""Float zero points: what a grid needs no code for zero for, on ordinary weights and on the worst."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import quant_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_inputs import importances, weights

from onnx_tailor.quant import BlockFormat, NonFiniteError, dequantize, factorize, gptq, quantize, weighted_error

TOLERANCE = 1e-5
"""Relative, of errors compared: they are judged in float32."""


def float_points(bits: int, block_size: int, scale_dtype: str) -> BlockFormat:
    return BlockFormat(bits, block_size, symmetric=False, scale_dtype=scale_dtype, float_points=True)


formats = st.builds(
    float_points,
    st.sampled_from([2, 4]),
    st.sampled_from([16, 32, 64, 128, 256]),
    st.sampled_from(reference.SCALE_TYPES),
)
methods = st.sampled_from(["rtn", "k_quant"])


def integer(fmt: BlockFormat) -> BlockFormat:
    return BlockFormat(fmt.bits, fmt.block_size, symmetric=False, scale_dtype=fmt.scale_dtype)


def errors(x, result, fmt, cost) -> np.ndarray:
    """Return the weighted error of each block, of the values as ONNX Runtime computes them; padding costs nothing."""
    padding = ((0, 0), (0, fmt.blocks(x.shape[1]) * fmt.block_size - x.shape[1]))
    difference = dequantize(result, x.shape[1], fmt).astype(np.float64) - x.astype(np.float64)
    return np.sum(cost * np.pad(difference, padding).reshape(cost.shape) ** 2, axis=2)


def cost_of(x, fmt, method, importance) -> np.ndarray:
    """Return what an error of each weight costs; plain rounding knows no difference."""
    shape = (len(x), fmt.blocks(x.shape[1]), fmt.block_size)
    if method == "rtn":
        return np.ones(shape)
    return np.broadcast_to(reference.costs(x, fmt, importance), shape)


@settings(deadline=None, max_examples=300)
@given(weights(), formats, methods, st.data())
def test_no_block_is_worse_than_with_an_integer_zero_point(x, fmt, method, data):
    importance = data.draw(importances(x.shape[1]))
    result = quantize(x, fmt, method, importance)
    assert np.all(np.isfinite(result.scales.astype(np.float64)))
    assert np.all(np.isfinite(result.zero_points.astype(np.float64)))
    assert np.all(np.isfinite(dequantize(result, x.shape[1], fmt)))
    cost = cost_of(x, fmt, method, importance)
    found = errors(x, result, fmt, cost)
    before = errors(x, quantize(x, integer(fmt), method, importance), integer(fmt), cost)
    # With float zero points two products are rounded in the place of one, which shows where hardly an error is left.
    scale, zero = (np.abs(each) for each in reference.grid(result, fmt))
    products = np.fmax(zero, 2**fmt.bits) * scale
    rounding = np.sqrt(np.sum(cost, axis=2)) * (2.0**-23 * products + 2.0**-126)
    assert np.all(np.sqrt(found) <= np.sqrt(before) * (1 + TOLERANCE) + rounding)


@settings(deadline=None, max_examples=100)
@given(weights(exponents=(-20, 20)), formats, methods)
def test_every_weight_has_its_nearest_code(x, fmt, method):
    result = quantize(x, fmt, method)
    scale, zero = (each[..., None] for each in reference.grid(result, fmt))
    codes = reference.unpack(result.codes, fmt.bits, fmt.block_size)
    exact = np.clip(reference.blocks(x, fmt) / scale + zero, 0, (1 << fmt.bits) - 1)
    # A zero point far away leaves float32 few digits of the sum.
    assert np.all(np.abs(codes - exact) <= 0.5 + 1e-6 * (16 + np.abs(zero)))


@settings(deadline=None, max_examples=100)
@given(weights(exponents=(-20, 20)), formats, methods, st.integers(1, 20), st.data())
def test_bytes_depend_on_the_values_alone(x, fmt, method, cut, data):
    """Not on where tiles end, nor on the type and the order of the source."""
    importance = data.draw(importances(x.shape[1]))
    with np.errstate(over="ignore"):
        x = np.nan_to_num(x.astype(ml_dtypes.bfloat16).astype(np.float32), posinf=1, neginf=-1)
    whole = quantize(x, fmt, method, importance)
    for source in (x.astype(ml_dtypes.bfloat16), np.asfortranarray(x)):
        other = quantize(source, fmt, method, importance)
        assert whole.codes.tobytes() == other.codes.tobytes()
        assert whole.scales.tobytes() == other.scales.tobytes()
        assert whole.zero_points.tobytes() == other.zero_points.tobytes()
    parts = [quantize(part, fmt, method, importance) for part in (x[:cut], x[cut:]) if len(part)]
    assert whole.codes.tobytes() == b"".join(part.codes.tobytes() for part in parts)
    assert whole.zero_points.tobytes() == b"".join(part.zero_points.tobytes() for part in parts)


@pytest.mark.parametrize("fmt", reference.FLOAT_POINT_FORMATS, ids=reference.name)
@pytest.mark.parametrize("kind", reference.SCALE_TYPES)
def test_layout_and_the_sums_of_errors(fmt, kind):
    fmt = float_points(fmt.bits, fmt.block_size, kind)
    x = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32)
    for method in ("rtn", "k_quant"):
        result = quantize(x, fmt, method)
        assert result.zero_points.shape == result.scales.shape == (5, fmt.blocks(300))
        assert result.zero_points.dtype == result.scales.dtype == fmt.dtype
        assert result.zero_points.nbytes == 5 * fmt.zero_point_row_bytes(300)
        difference = reference.values(result, 300, fmt) - x
        assert np.isclose(result.sums.squared_error, np.sum(difference**2), rtol=1e-5)
        assert np.isclose(result.sums.squared_weight, np.sum(x.astype(np.float64) ** 2), rtol=1e-6)


def test_plain_rounding_maps_the_block_s_own_range_onto_the_codes():
    """Here every block lies to one side of zero, so that an integer zero point wastes codes."""
    x = (3 + np.random.default_rng(1).random((8, 64))).astype(np.float32)
    fmt = float_points(4, 32, "float32")
    result = quantize(x, fmt, "rtn")
    values = x.astype(np.float64).reshape(8, 2, 32)
    low, high = values.min(2), values.max(2)
    assert np.allclose(result.scales, (high - low) / 15, rtol=1e-5)
    assert np.allclose(result.zero_points, -low * 15 / (high - low), rtol=1e-5)
    codes = reference.unpack(result.codes, 4, 32)
    assert np.all(np.take_along_axis(codes, values.argmin(2)[..., None], axis=2) == 0)
    assert np.all(np.take_along_axis(codes, values.argmax(2)[..., None], axis=2) == 15)
    assert result.sums.relative_error < 0.3 * quantize(x, integer(fmt), "rtn").sums.relative_error


def _thorough(x, cost, maxq) -> np.ndarray:
    """Return the least weighted error [blocks] of many ranges, each fitted until it stays: k-quant's search, slowly."""
    low, high = x.min(1), x.max(1)
    best = np.full(len(x), np.inf)
    for part in np.linspace(0.3, 1.1, 41):
        scale = part * (high - low) / maxq
        zero = maxq / 2 - (low + high) / 2 / scale
        for _ in range(10):
            code = np.clip(np.rint(x / scale[:, None] + zero[:, None]), 0, maxq)
            best = np.minimum(best, np.sum(cost * (x - (code - zero[:, None]) * scale[:, None]) ** 2, axis=1))
            total = cost.sum(1)
            middle, mean = (cost * code).sum(1) / total, (cost * x).sum(1) / total
            away = code - middle[:, None]
            scale = (cost * away * (x - mean[:, None])).sum(1) / (cost * away**2).sum(1)
            zero = middle - mean / scale
    return best


@pytest.mark.parametrize(("bits", "limit"), [(4, 1.02), (2, 1.02)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_search_ends_near_one_that_is_much_longer(bits, limit, weighted):
    random = np.random.default_rng(5)
    x = (0.02 * random.standard_t(5, (64, 256))).astype(np.float32)
    importance = np.exp(random.standard_normal(256)).astype(np.float32) if weighted else None
    fmt = float_points(bits, 32, "float32")
    found = weighted_error(x, quantize(x, fmt, "k_quant", importance), fmt, importance)
    cost = np.broadcast_to(reference.costs(x, fmt, importance), (64, 8, 32)).reshape(-1, 32)
    least = _thorough(reference.blocks(x, fmt).reshape(-1, 32), cost, (1 << bits) - 1)
    before = weighted_error(x, quantize(x, integer(fmt), "k_quant", importance), integer(fmt), importance)
    assert found.sum() <= limit**2 * least.sum()
    assert found.sum() <= 0.9 * before.sum()


@pytest.mark.parametrize("kind", reference.SCALE_TYPES)
@pytest.mark.parametrize("method", ["rtn", "k_quant"])
@pytest.mark.parametrize("bits", [2, 4])
def test_blocks_that_a_zero_point_can_hardly_be_found_for(kind, method, bits):
    """Far from zero for their width, so that float16 holds no zero point; huge, denormal, constant and zero ones."""
    random = np.random.default_rng(2)
    narrow = 1000 + 1e-4 * random.standard_normal(32)
    huge = np.where(np.arange(32) % 2, 3e38, -3e38)
    x = np.stack([narrow, -narrow, huge, narrow * 3e35, np.full(32, 1e-41), np.full(32, -0.3), np.zeros(32)])
    x = x.astype(np.float32)
    fmt = float_points(bits, 32, kind)
    result, before = quantize(x, fmt, method), quantize(x, integer(fmt), method)
    for array in (result.scales, result.zero_points, dequantize(result, 32, fmt)):
        assert np.all(np.isfinite(array.astype(np.float64)))
    worse = errors(x, result, fmt, np.ones((7, 1, 32))) - errors(x, before, integer(fmt), np.ones((7, 1, 32)))
    assert np.all(worse <= 1e-9 * np.sum(x.astype(np.float64) ** 2, axis=1, keepdims=True))
    assert not np.any(dequantize(result, 32, fmt)[-1])


def test_padding_is_no_zero_that_a_grid_would_have_to_hold():
    """A row of 40 in blocks of 32: the eight weights of its last block get what a block of eight such pairs gets."""
    x = (5 + np.random.default_rng(3).random((4, 40))).astype(np.float32)
    fmt = float_points(4, 32, "float32")
    for method, rtol in (("rtn", 1e-5), ("k_quant", 1e-3)):  # rms(block), a part of the costs, counts the zeros
        padded = quantize(x, fmt, method)
        filled = quantize(np.tile(x[:, 32:], (1, 4)), fmt, method)
        assert np.allclose(padded.scales[:, 1:], filled.scales, rtol=rtol)
        assert np.allclose(padded.zero_points[:, 1:], filled.zero_points, rtol=rtol)


@pytest.mark.parametrize("bits", [2, 4])
def test_symmetric_grids_have_no_float_zero_points(bits):
    with pytest.raises(ValueError, match="symmetric"):
        BlockFormat(bits, 32, symmetric=True, scale_dtype="float32", float_points=True)


def test_levels_between_the_integers_are_met():
    """Four levels about zero, none of which is zero, need a zero point of 1.5."""
    x = np.random.default_rng(1).choice(np.array([-3, -1, 1, 3], np.float32), (16, 128)) / 8
    fmt = float_points(2, 32, "float16")
    assert np.array_equal(dequantize(quantize(x, fmt, "k_quant"), 128, fmt), x)
    assert quantize(x, integer(fmt), "k_quant").sums.squared_error > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_no_code_can_stand_for(value):
    x = np.ones((8, 200), np.float32)
    x[5, 77] = value
    with pytest.raises(NonFiniteError) as error:
        quantize(x, float_points(4, 32, "float32"), "rtn")
    assert (error.value.row, error.value.column) == (5, 77)


def test_gptq_keeps_the_zero_points_and_gains():
    x, fmt = np.random.default_rng(3).standard_normal((16, 96), np.float32), float_points(4, 32, "float16")
    inputs = np.random.default_rng(4).standard_normal((384, 96)) @ np.random.default_rng(5).standard_normal((96, 96))
    factor = factorize((inputs.T @ inputs / len(inputs)).astype(np.float32))
    importance = np.diag(factor.hessian).copy()

    def error(result, fmt):
        difference = dequantize(result, 96, fmt) - x
        return float(np.einsum("rk,kl,rl->", difference, factor.hessian, difference))

    start, found = quantize(x, fmt, "k_quant", importance), gptq(x, fmt, factor, importance)
    assert np.array_equal(found.zero_points, start.zero_points)
    assert error(found, fmt) < error(gptq(x, integer(fmt), factor, importance), integer(fmt)) < error(start, fmt)
