"""Parts of tensors and tensors put together, against numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_tailor.weights.files import DataFile, InlineBytes
from onnx_tailor.weights.joined import Joined, join
from onnx_tailor.weights.parts import put_together, take
from onnx_tailor.weights.tensors import Blob, WeightTensor
from onnx_tailor.weights.view import View

if TYPE_CHECKING:
    from pathlib import Path

Array = np.ndarray[Any, Any]


def stored(values: Array) -> WeightTensor:
    view = View.contiguous(InlineBytes(values.tobytes()), 0, ir.DataType.from_numpy(values.dtype), values.shape)
    return WeightTensor.of_view(view)


def taken(*arguments: Any) -> Array:
    found = take(*arguments)
    assert isinstance(found, WeightTensor), found
    return np.asarray(found.numpy())


@given(
    rows=st.integers(2, 9),
    columns=st.integers(1, 7),
    axis=st.integers(0, 1),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_take_and_put_together_are_numpys(
    rows: int, columns: int, axis: int, bounds: tuple[float, float], seed: int
) -> None:
    values = np.random.default_rng(seed).standard_normal((rows, columns), np.float32)
    size = values.shape[axis]
    first, second = sorted(int(bound * size) for bound in bounds)
    cuts = [(a, b) for a, b in ((0, first), (first, second), (second, size)) if a < b]
    tensor = stored(values)
    parts = [take(tensor, axis, size, *cut) for cut in cuts]
    for part, (start, stop) in zip(parts, cuts, strict=True):
        assert isinstance(part, WeightTensor)
        np.testing.assert_array_equal(part.numpy(), np.take(values, range(start, stop), axis))
    whole = put_together([part for part in parts if isinstance(part, WeightTensor)], axis)
    assert isinstance(whole, WeightTensor)
    np.testing.assert_array_equal(whole.numpy(), values)
    assert whole.blob == tensor.blob  # one range of the file again: nothing would be written twice


@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    axis=st.integers(0, 1),
    turned=st.booleans(),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_joined_windows_read_like_one_array(
    lengths: list[int], axis: int, turned: bool, bounds: tuple[float, float]
) -> None:
    random = np.random.default_rng(1)
    arrays = [random.standard_normal((n, 5) if axis == 0 else (5, n), np.float32) for n in lengths]
    views = [stored(array).view for array in arrays]
    window = join([view for view in views if view is not None], axis)
    assert isinstance(window, Joined)
    expected: Array = np.concatenate(arrays, axis)
    if turned:
        window, expected = window.transpose(), expected.T
    assert (window.shape, window.size, window.nbytes) == (expected.shape, expected.size, expected.nbytes)
    start, stop = sorted(int(bound * len(expected)) for bound in bounds)
    if start < stop:
        np.testing.assert_array_equal(window.rows(start, stop).read(), expected[start:stop])
    np.testing.assert_array_equal(WeightTensor.of_view(window).numpy(), expected)
    tiles = window.tiles()
    np.testing.assert_array_equal(np.concatenate([window.rows(*tile).read() for tile in tiles]), expected)


def test_a_bias_may_have_dimensions_of_one_in_front() -> None:
    values = np.arange(6, dtype=np.float32).reshape(1, 1, 6)
    np.testing.assert_array_equal(taken(stored(values), 2, 6, 1, 4), values[:, :, 1:4])


def test_the_flat_form_stays_flat() -> None:
    values = np.arange(12, dtype=np.uint8)
    np.testing.assert_array_equal(taken(stored(values), 0, 4, 1, 3), values[3:9])


def test_rows_inside_a_byte_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(range(8)))
    view = View.contiguous(DataFile.open(tmp_path / "w"), 0, ir.DataType.UINT4, (3, 5))
    tensor = WeightTensor.of_view(view)
    assert take(tensor, 0, 3, 0, 1) == "its rows do not begin at whole bytes"
    assert take(tensor, 1, 5, 0, 2) == "it is UINT4[3, 5], whose columns cannot be divided"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((5, 4), "it has the shape [5, 4], which holds no 3 rows of one length"), ((7,), "it has the shape [7]")],
)
def test_another_shape_is_refused(shape: tuple[int, ...], reason: str) -> None:
    found = take(stored(np.zeros(shape, np.float32)), 0, 3, 0, 1)
    assert isinstance(found, str)
    assert found.startswith(reason)


def test_what_an_unknown_job_computes_is_not_divided() -> None:
    class Job:
        outputs = {"data": 16}  # noqa: RUF012

    tensor = WeightTensor(Blob(Job(), "data"), ir.DataType.FLOAT, (2, 2))  # type: ignore[arg-type]
    assert take(tensor, 0, 2, 0, 1) == "an earlier pass computes it in one piece"
    assert put_together([tensor, tensor], 0) == "earlier passes compute them"


def test_different_types_are_not_put_together() -> None:
    one, two = stored(np.zeros((2, 2), np.float32)), stored(np.zeros((2, 2), np.float16))
    assert put_together([one, two], 0) == "they are FLOAT and FLOAT16"
    assert put_together([one, stored(np.zeros((2, 3), np.float32))], 0) == "they have the shapes [2, 2], [2, 3]"
