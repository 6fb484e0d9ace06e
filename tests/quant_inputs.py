"""Weights and importances for property tests: ordinary ones, and the worst that a file can hold."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
shapes = st.tuples(st.integers(1, 20), st.integers(1, 140))


@st.composite
def weights(draw, exponents: tuple[int, int] = (-140, 120)) -> np.ndarray:
    """Draw a matrix: any floats whatever, or Gaussians of any size with outliers, zero blocks and repeated values."""
    rows, k = draw(shapes)
    if exponents == (-140, 120) and draw(st.booleans()):
        return draw(arrays.arrays(np.float32, (rows, k), elements=finite))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = random.standard_normal((rows, k))
    match draw(st.sampled_from(["plain", "outliers", "zeros", "constant", "few values", "one sign"])):
        case "outliers":
            x *= np.where(random.random((rows, k)) < 0.02, 1000, 1)
        case "zeros":
            x *= random.random((rows, k)) < 0.1
        case "constant":
            x[:] = x[0, 0]
        case "few values":
            x = np.rint(x * 2)
        case "one sign":
            x = np.abs(x)
    return np.clip(x * 2.0 ** draw(st.integers(*exponents)), -3e38, 3e38).astype(np.float32)


@st.composite
def importances(draw, k: int) -> np.ndarray | None:
    if draw(st.booleans()):
        return None
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = np.exp(2 * random.standard_normal(k)) * (random.random(k) < draw(st.sampled_from([0.0, 0.3, 1.0])))
    return (values * 2.0 ** draw(st.integers(-60, 60))).astype(np.float32)
