"""Sums over activations."""

import numpy as np
import pytest

from onnx_tailor.calibration.statistics import InputSums


@pytest.mark.parametrize("columns", [1, 40, 256, 600])
def test_a_hessian_is_the_whole_mean_of_products(columns):
    random = np.random.default_rng(columns)
    windows = [random.standard_normal((1, tokens, columns)).astype(np.float32) for tokens in (7, 1, 64)]
    sums = InputSums.empty("x", columns, hessian=True)
    for window in windows:
        sums.add(window)
    hessian = sums.mean_hessian()
    x = np.concatenate([window.reshape(-1, columns) for window in windows]).astype(np.float64)
    np.testing.assert_array_equal(hessian, hessian.T)
    np.testing.assert_allclose(hessian, x.T @ x / len(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums.mean_square(), np.mean(x**2, axis=0), rtol=1e-5)
