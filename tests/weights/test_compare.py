"""Two weights compared in tiles, against numpy over all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_tailor.weights import compare as module
from onnx_tailor.weights import view as views
from onnx_tailor.weights.compare import Comparison, compare
from onnx_tailor.weights.files import InlineBytes
from onnx_tailor.weights.view import View

TYPES = [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "TILE_BYTES", 400)
    monkeypatch.setattr(views, "_MIN_SEGMENT", 8)
    monkeypatch.setattr(module, "_PART", 30)


def window(values: np.ndarray[Any, Any], dtype: ir.DataType, *, by_columns: bool) -> View:
    stored = values.T if by_columns else values
    file = InlineBytes(np.ascontiguousarray(stored, dtype.numpy()).tobytes())
    view = View.contiguous(file, 0, dtype, stored.shape)
    return view.transpose() if by_columns else view


def expected(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], narrow: np.dtype[Any]) -> Comparison:
    left, right = a.astype(np.float32), b.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = int((left.astype(narrow) != right.astype(narrow)).sum())
        distance = np.where(left == right, np.float32(0), np.abs(left - right))
    distance[np.isnan(distance)] = np.inf
    row, column = (int(at) for at in np.unravel_index(int(np.argmax(distance)), distance.shape))
    return Comparison(a.size, int((left != right).sum()), rounded, float(distance[row, column]), (row, column))


@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 40),
    dtypes=st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES)),
    by_columns=st.tuples(st.booleans(), st.booleans()),
    changed=st.lists(
        st.tuples(st.floats(0, 0.99), st.floats(0, 0.99), st.sampled_from([1e-6, 0.5, 2.0, np.inf, -np.inf, np.nan])),
        max_size=4,
    ),
)
def test_a_comparison_in_tiles_is_that_of_all(
    rows: int,
    columns: int,
    dtypes: tuple[ir.DataType, ir.DataType],
    by_columns: tuple[bool, bool],
    changed: list[tuple[float, float, float]],
) -> None:
    first = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    second = first.copy()
    for y, x, by in changed:
        with np.errstate(invalid="ignore"):  # infinities of both signs
            second[int(y * rows), int(x * columns)] += np.float32(by)
    a, b = first.astype(dtypes[0].numpy()), second.astype(dtypes[1].numpy())
    narrow = min(dtypes, key=lambda dtype: dtype.itemsize).numpy()
    found = compare(*(window(v, t, by_columns=c) for v, t, c in zip((a, b), dtypes, by_columns, strict=True)))
    wanted = expected(a, b, narrow)
    if wanted.equal:  # then the place says nothing
        found, wanted = (Comparison(c.elements, 0, c.different_rounded, c.largest, (0, 0)) for c in (found, wanted))
    assert found == wanted
