"""The kernels against slow references, on ordinary weights and on the worst that a file can hold."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import quant_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor, quant_tensor_k_quant_cpu
from quant_inputs import importances, weights

from onnx_tailor.quant import BlockFormat, NonFiniteError, dequantize, quantize, weighted_error

TOLERANCE = 1e-5
"""Relative, of errors compared: they are judged in float32."""

formats = st.builds(
    BlockFormat,
    bits=st.sampled_from([2, 4, 8]),
    block_size=st.sampled_from([16, 32, 64, 128, 256]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(reference.SCALE_TYPES),
)


@settings(deadline=None, max_examples=300)
@given(weights(), formats, st.sampled_from(["rtn", "k_quant"]), st.data())
def test_every_weight_has_its_nearest_code(x, fmt, method, data):
    result = quantize(x, fmt, method, data.draw(importances(x.shape[1])))
    scale, zero = reference.grid(result, fmt)
    assert np.all(np.isfinite(scale))
    assert np.all(scale != 0)
    maxq = (1 << fmt.bits) - 1
    exact = np.clip(reference.blocks(x, fmt) / scale[..., None], -zero[..., None], maxq - zero[..., None])
    codes = reference.unpack(result.codes, fmt.bits, fmt.block_size) - zero[..., None]
    small = np.abs(reference.blocks(x, fmt)).max(2, keepdims=True) < np.abs(scale[..., None]) * 2.0**-100
    assert np.all((np.abs(codes - exact) <= 0.5 + 1e-5) | small)


@settings(deadline=None, max_examples=300)
@given(weights(), formats, st.data())
def test_k_quant_is_never_worse_than_plain_rounding(x, fmt, data):
    importance = data.draw(importances(x.shape[1]))
    found = reference.grid_error(x, *reference.grid(quantize(x, fmt, "k_quant", importance), fmt), fmt, importance)
    plain = reference.grid_error(x, *reference.rtn(x, fmt), fmt, importance)
    assert np.all(found <= plain * (1 + TOLERANCE) + reference.slack(x, fmt, importance))


@settings(deadline=None, max_examples=300)
@given(weights(exponents=(-20, 20)), formats)
def test_k_quant_is_never_worse_than_that_of_onnxruntime(x, fmt):
    """Among sizes whose squares do not overflow or vanish in ONNX Runtime's own search, which leaves it to chance."""
    flat = reference.blocks(x, fmt).reshape(-1, fmt.block_size).astype(np.float32)
    with np.errstate(all="ignore"):
        if fmt.symmetric:
            _, scale, _ = quant_tensor(flat, fmt.bits, fmt.block_size, "sym", "uint")
            zero = np.full_like(scale, 1 << fmt.bits - 1)
        else:
            _, scale, zero = quant_tensor_k_quant_cpu(flat, fmt.bits, fmt.block_size)
    shape = (len(x), fmt.blocks(x.shape[1]))
    scale = reference.stored(np.nan_to_num(scale.astype(np.float64)).reshape(shape), fmt)
    theirs = reference.grid_error(x, scale, zero.astype(np.float64).reshape(shape), fmt)
    found = reference.grid_error(x, *reference.grid(quantize(x, fmt, "k_quant"), fmt), fmt)
    assert np.all(found <= theirs * (1 + TOLERANCE) + reference.slack(x, fmt, None))


@settings(deadline=None, max_examples=100)
@given(weights(), formats, st.sampled_from(["rtn", "k_quant"]), st.integers(1, 20), st.data())
def test_bytes_do_not_depend_on_where_tiles_end(x, fmt, method, cut, data):
    importance = data.draw(importances(x.shape[1]))
    whole = quantize(x, fmt, method, importance)
    parts = [quantize(part, fmt, method, importance) for part in (x[:cut], x[cut:]) if len(part)]
    assert whole.codes.tobytes() == b"".join(part.codes.tobytes() for part in parts)
    assert whole.scales.tobytes() == b"".join(part.scales.tobytes() for part in parts)
    if whole.zero_points is not None:
        assert whole.zero_points.tobytes() == b"".join(part.zero_points.tobytes() for part in parts)


@settings(deadline=None, max_examples=100)
@given(weights(), formats, st.sampled_from(["rtn", "k_quant"]), st.sampled_from(reference.SCALE_TYPES), st.data())
def test_any_type_and_order_of_the_source_gives_the_same_bytes(x, fmt, method, kind, data):
    dtype = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[kind]
    with np.errstate(over="ignore"):
        x = np.nan_to_num(x.astype(dtype).astype(np.float32), posinf=1, neginf=-1).astype(dtype)
    importance = data.draw(importances(x.shape[1]))
    first = quantize(x.astype(np.float32), fmt, method, importance)
    for source in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        other = quantize(source, fmt, method, importance)
        assert first.codes.tobytes() == other.codes.tobytes()
        assert first.scales.tobytes() == other.scales.tobytes()
        assert (first.zero_points is None) == (other.zero_points is None)
        assert first.zero_points is None or first.zero_points.tobytes() == other.zero_points.tobytes()


@settings(deadline=None, max_examples=100)
@given(weights(), formats, st.sampled_from(["rtn", "k_quant"]))
def test_layout(x, fmt, method):
    result = quantize(x, fmt, method)
    k, blocks = x.shape[1], fmt.blocks(x.shape[1])
    assert result.codes.shape == (len(x), blocks, fmt.blob_bytes)
    assert result.scales.shape == (len(x), blocks)
    assert result.scales.dtype == fmt.dtype
    codes = reference.unpack(result.codes, fmt.bits, fmt.block_size)
    assert np.array_equal(reference.pack(codes, fmt.bits), result.codes)
    if not fmt.symmetric:
        points = reference.unpack(result.zero_points, fmt.bits, blocks)
        assert np.array_equal(reference.pack(points, fmt.bits), result.zero_points)  # the bits left over are zero
    assert np.allclose(dequantize(result, k, fmt), reference.values(result, k, fmt), rtol=1e-6, atol=2.0**-149)


@pytest.mark.parametrize("fmt", reference.FORMATS, ids=reference.name)
@pytest.mark.parametrize("kind", reference.SCALE_TYPES)
def test_zeros_stay_zero(fmt, kind):
    fmt = BlockFormat(fmt.bits, fmt.block_size, fmt.symmetric, kind)
    for method in ("rtn", "k_quant"):
        assert not np.any(dequantize(quantize(np.zeros((3, 300), np.float32), fmt, method), 300, fmt))


def test_scales_beyond_float16_take_its_largest_value():
    fmt = BlockFormat(4, 32, symmetric=False, scale_dtype="float16")
    for method in ("rtn", "k_quant"):
        result = quantize(np.full((1, 32), 3e38, np.float32), fmt, method)
        assert result.scales[0, 0] == 65504
        assert np.all(np.isfinite(result.scales))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_weight_that_is_not_finite(bad, dtype, order):
    x = np.ones((20, 70), dtype)
    x[17, 68] = bad
    x[18, 3] = bad
    with pytest.raises(NonFiniteError) as error:
        quantize(np.array(x, order=order), BlockFormat(4, 32, symmetric=False, scale_dtype="float32"), "k_quant")
    assert (error.value.row, error.value.column) == (17, 68)
    assert np.array_equal(error.value.value, float(bad), equal_nan=True)


def test_weighted_error_is_that_of_the_reference():
    x = np.random.default_rng(0).standard_normal((5, 100)).astype(np.float32)
    importance = np.random.default_rng(1).random(100).astype(np.float32)
    for fmt in reference.FORMATS:
        result = quantize(x, fmt, "rtn")
        for each in (None, importance):
            expected = reference.grid_error(x, *reference.grid(result, fmt), fmt, each)
            assert np.allclose(weighted_error(x, result, fmt, each), expected, rtol=1e-5)
