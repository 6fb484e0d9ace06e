"""Packed values in another order, against the order of values that are not packed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_tailor.quant.order import row_major
from onnx_tailor.quant.packing import pack, transpose


@given(bits=st.sampled_from([2, 4, 8]), rows=st.integers(1, 70), columns=st.integers(1, 70), seed=st.integers(0, 99))
def test_transposed_are_the_values_and_not_the_bytes(bits: int, rows: int, columns: int, seed: int) -> None:
    each = 8 // bits
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows * each, columns * each), np.uint8)
    found = transpose(pack(values, bits), bits)
    assert found.flags.c_contiguous
    assert np.array_equal(found, pack(np.ascontiguousarray(values.T), bits))
    assert np.array_equal(transpose(found, bits), pack(values, bits))


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, ml_dtypes.bfloat16, np.float32, np.int64])
@pytest.mark.parametrize("shape", [(1, 1), (0, 3), (5, 300), (300, 5), (128, 129)])
def test_elements_keep_their_places_in_row_major_order(shape: tuple[int, int], dtype: Any) -> None:
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    for given_order in (values, np.asfortranarray(values), np.repeat(values, 2, axis=1)[:, ::2]):
        found = row_major(given_order)
        assert found.flags.c_contiguous
        assert found.dtype == dtype
        assert np.array_equal(found, values)
    assert row_major(values) is values
