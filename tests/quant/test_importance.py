"""k_quant weighted by importance."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_tailor.quant import BlockFormat, error_sums, quantize, weighted_error

FORMATS = [BlockFormat(bits, 32, symmetric, "float16") for bits in (2, 4, 8) for symmetric in (False, True)]


def _weights(rows: int = 24, k: int = 100) -> np.ndarray:
    random = np.random.default_rng(3)
    return (random.standard_t(4, (rows, k)) * 0.02).astype(np.float32)


def _importance(k: int = 100) -> np.ndarray:
    return np.exp(2 * np.random.default_rng(4).standard_normal(k)).astype(np.float32)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_never_above_rtn_nor_above_the_search_without_importance(fmt):
    x, importance = _weights(), _importance()
    weighted = weighted_error(x, quantize(x, fmt, "k_quant", importance), fmt, importance)
    plain = weighted_error(x, quantize(x, fmt, "rtn"), fmt, importance)
    assert np.all(weighted <= plain * (1 + 1e-6))
    assert weighted.sum() < weighted_error(x, quantize(x, fmt, "k_quant"), fmt, importance).sum()


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e6, 1e30])
def test_only_the_ratio_of_importances_counts(factor):
    fmt, x, importance = BlockFormat(4, 32, symmetric=False, scale_dtype="float32"), _weights(), _importance()
    scaled = (importance * np.exp2(np.round(np.log2(factor)))).astype(np.float32)
    first, second = quantize(x, fmt, "k_quant", importance), quantize(x, fmt, "k_quant", scaled)
    assert np.array_equal(first.codes, second.codes)
    assert np.array_equal(first.scales, second.scales)


def test_a_block_without_importance_counts_every_weight_alike():
    fmt, x = BlockFormat(4, 32, symmetric=False, scale_dtype="float32"), _weights()
    importance = np.zeros(100, np.float32)
    importance[64:96] = 1
    ones = quantize(x, fmt, "k_quant", np.ones(100, np.float32))
    some = quantize(x, fmt, "k_quant", importance)
    assert np.array_equal(ones.codes, some.codes)
    assert np.array_equal(ones.scales, some.scales)


@pytest.mark.parametrize("bad", [np.ones(99), -np.ones(100), np.full(100, np.nan), np.full(100, np.inf)])
def test_importance_that_is_no_importance(bad):
    with pytest.raises(ValueError, match="importance must be 100 finite values"):
        quantize(
            _weights(), BlockFormat(4, 32, symmetric=False, scale_dtype="float32"), "k_quant", bad.astype(np.float32)
        )


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_sums_are_those_of_the_stored_values(fmt):
    x = _weights()
    result = quantize(x, fmt, "k_quant", _importance())
    again = error_sums(x, result, fmt)
    assert result.sums.squared_error == pytest.approx(again.squared_error, rel=1e-5)
    assert result.sums.squared_weight == pytest.approx(again.squared_weight, rel=1e-5)
    assert 0 < result.sums.relative_error < 1
    assert result.sums.signal_to_noise_db == pytest.approx(-20 * np.log10(result.sums.relative_error))
