"""Views against numpy's own slices and transpositions of the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_tailor.errors import ModelError
from onnx_tailor.weights import view as views
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.view import View

DTYPES = [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT64, ir.DataType.UINT8]


def stored(folder: Path, values: np.ndarray, dtype: ir.DataType, offset: int = 0) -> View:
    path = folder / "weights"
    path.write_bytes(b"\xaa" * offset + values.tobytes() + b"\xbb" * 7)
    return View.contiguous(DataFile.open(path), offset, dtype, values.shape)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    offset=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES),
    bounds=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_a_view_reads_what_numpy_slices(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    offset: int,
    dtype: ir.DataType,
    bounds: tuple[int, int],
) -> None:
    values = np.random.default_rng(0).integers(0, 250, (rows, columns)).astype(dtype.numpy())
    view = stored(tmp_path_factory.mktemp("view"), values, dtype, offset)
    assert view.read().tobytes() == values.tobytes()
    assert np.array_equal(view.transpose().read(), values.T)
    assert view.transpose().transpose() == view
    for whole, expected in ((view, values), (view.transpose(), values.T)):
        start, stop = sorted(min(b, len(expected)) for b in bounds)
        if start < stop:
            part = whole.rows(start, stop)
            assert part.shape == expected[start:stop].shape
            assert np.array_equal(part.read(), expected[start:stop])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (300, 70), (1, 4096), (4096, 1)])
def test_tiles_cover_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], *, transposed: bool
) -> None:
    monkeypatch.setattr(views, "TILE_BYTES", 1000)
    monkeypatch.setattr(views, "_MIN_SEGMENT", 64)
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    view = stored(tmp_path, values, ir.DataType.FLOAT)
    view, values = (view.transpose(), values.T) if transposed else (view, values)
    tiles = view.tiles()
    assert [start for start, _ in tiles] == [0, *[stop for _, stop in tiles[:-1]]]
    assert tiles[-1][1] == len(values)
    assert np.array_equal(np.concatenate([view.rows(*tile).read() for tile in tiles]), values)


def test_four_bit_elements_share_bytes(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(range(5)))
    view = View.contiguous(DataFile.open(tmp_path / "w"), 0, ir.DataType.UINT4, (3, 3))
    assert (view.size, view.nbytes, view.bytes_view().shape) == (9, 5, (5,))
    assert view.bytes_view().read().tobytes() == bytes(range(5))


def test_a_scalar_and_an_empty_tensor(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(np.float32(2.5).tobytes())
    file = DataFile.open(tmp_path / "w")
    assert View.contiguous(file, 0, ir.DataType.FLOAT, ()).read() == np.float32(2.5)
    empty = View.contiguous(file, 4, ir.DataType.FLOAT, (0, 3))
    assert (empty.nbytes, empty.tiles(), empty.read().shape) == (0, [], (0, 3))


def test_a_file_cut_off_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(bytes(64))
    view = View.contiguous(DataFile.open(path), 0, ir.DataType.UINT8, (64,))
    view.rows(0, 8).read()  # the handle is open now
    with path.open("r+b") as file:
        file.truncate(16)
    with pytest.raises(ModelError, match="ends at byte 16 while it is read"):
        view.read()


def test_a_file_replaced_after_loading_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(bytes(64))
    file = DataFile.open(path)
    path.unlink()
    path.write_bytes(bytes(65))
    with pytest.raises(ModelError, match="the file was changed during the run"):
        View.contiguous(file, 0, ir.DataType.UINT8, (64,)).read()
