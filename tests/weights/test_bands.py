"""Weights that are stored by columns: read in bands, and quantized to the bytes of the same weights stored by rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnx_tailor.errors import ModelError
from onnx_tailor.quant import BlockFormat
from onnx_tailor.quant.format import FLOAT_POINT_BITS, Bits, ScaleType
from onnx_tailor.weights import bands
from onnx_tailor.weights import view as views
from onnx_tailor.weights.files import DataFile, InlineBytes
from onnx_tailor.weights.joined import join
from onnx_tailor.weights.quantize_job import Importance, QuantizeJob
from onnx_tailor.weights.tensors import Blob
from onnx_tailor.weights.transposed_codes import TransposedCodes
from onnx_tailor.weights.view import View, Window

TYPES = [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16]
SIZES = {"block_size": st.sampled_from([16, 32, 64]), "scale_dtype": st.sampled_from(get_args(ScaleType))}
INTEGERS = st.builds(BlockFormat, bits=st.sampled_from(get_args(Bits)), symmetric=st.booleans(), **SIZES)
KINDS = {"symmetric": st.sampled_from([False]), "float_points": st.sampled_from([True])}
FLOATS = st.builds(BlockFormat, bits=st.sampled_from(FLOAT_POINT_BITS), **KINDS, **SIZES)
FORMATS = INTEGERS | FLOATS


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "TILE_BYTES", 4096)
    monkeypatch.setattr(views, "_MIN_SEGMENT", 32)


def by_rows(values: np.ndarray[Any, Any]) -> View:
    file = InlineBytes(np.ascontiguousarray(values).tobytes())
    return View.contiguous(file, 0, ir.DataType.from_numpy(values.dtype), values.shape)


def by_columns(values: np.ndarray[Any, Any], spare: int = 0) -> Window:
    """Return a window on columns that are longer by `spare` elements: part of a wider weight."""
    wide = np.concatenate([values.T, np.full((values.shape[1], spare), 7, values.dtype)], axis=1)
    return by_rows(wide).transpose().rows(0, len(values))


def stored(job: QuantizeJob | TransposedCodes) -> dict[str, bytes]:
    return {output: Blob(job, output).materialize().tobytes() for output in job.outputs}


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 300),
    fmt=FORMATS,
    dtype=st.sampled_from(TYPES),
    method=st.sampled_from(["rtn", "k_quant"]),
    weighted=st.booleans(),
    form=st.sampled_from(["whole", "part", "joined", "mixed"]),
    seed=st.integers(0, 99),
)
def test_columns_give_the_bytes_of_rows(
    rows: int, columns: int, fmt: BlockFormat, dtype: ir.DataType, method: Any, weighted: bool, form: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, columns)).astype(dtype.numpy())
    importance = Importance(random.random(columns, np.float32)) if weighted else None
    job = QuantizeJob(by_rows(values), fmt, method, "w", importance)
    cut = rows // 2
    window = by_columns(values, spare=5 if form == "part" else 0)
    if form in {"joined", "mixed"} and cut:
        below = by_rows(values[cut:]) if form == "mixed" else by_columns(values[cut:])
        window = join([by_columns(values[:cut]), below], 0)
    other = replace(job, view=window)
    assert stored(job) == stored(other)
    assert other.errors.covers(other.tiles())
    assert job.errors.total().squared_error == pytest.approx(other.errors.total().squared_error, rel=1e-12)
    if rows % (8 // fmt.bits) == 0 and not fmt.float_points:  # DequantizeLinear takes none
        assert stored(TransposedCodes(replace(job, view=by_rows(values)))) == stored(TransposedCodes(other))


@given(rows=st.integers(1, 3000), columns=st.integers(1, 3000), fmt=FORMATS, dtype=st.sampled_from(TYPES))
def test_neither_a_band_nor_the_results_of_a_tile_grow_with_the_weight(
    rows: int, columns: int, fmt: BlockFormat, dtype: ir.DataType
) -> None:
    window = View.contiguous(InlineBytes(b""), 0, dtype, (columns, rows)).transpose()
    assume(window.turned)
    job = QuantizeJob(window, fmt, "rtn", "w")
    shortest = 32 // int(dtype.itemsize)
    for start, stop in job.tiles():
        found = bands.bands(window.rows(start, stop), fmt)
        assert [first for first, _ in found] == [0, *(last for _, last in found[:-1])]
        assert found[-1][1] == columns
        assert all(first * fmt.bits % (8 * fmt.block_size) == 0 for first, _ in found)
        if stop - start > shortest:
            largest = max(last - first for first, last in found) * (stop - start) * dtype.itemsize
            assert largest <= 2048
            assert sum(job.outputs.values()) * (stop - start) // rows <= 2 * 4096


def test_a_band_of_all_rows_is_read_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "TILE_BYTES", 16384)
    values = np.random.default_rng(0).standard_normal((32, 256), np.float32)
    (tmp_path / "w").write_bytes(values.T.tobytes())
    window = View.contiguous(DataFile.open(tmp_path / "w"), 0, ir.DataType.FLOAT, (256, 32)).transpose()
    pieces = []
    read = DataFile._fill

    def noting(self: DataFile, handle: Any, offset: int, buffer: memoryview) -> None:
        pieces.append((offset, len(buffer)))
        read(self, handle, offset, buffer)

    monkeypatch.setattr(DataFile, "_fill", noting)
    job = QuantizeJob(window, BlockFormat(4, 32, symmetric=False, scale_dtype="float32"), "rtn", "w")
    assert job.tiles() == [(0, 32)]
    stored(job)
    assert sum(length for _, length in pieces) == len(job.outputs) * window.nbytes
    assert all(length == 64 * 32 * 4 for _, length in pieces)  # 64 columns: two blocks, whose zero points fill a byte


def test_a_weight_that_is_not_finite_is_told_by_its_own_row_and_column() -> None:
    values = np.zeros((40, 300), np.float32)
    values[33, 277] = np.inf
    job = QuantizeJob(by_columns(values), BlockFormat(4, 32, symmetric=True, scale_dtype="float32"), "rtn", "w")
    assert len(job.tiles()) > 1
    with pytest.raises(ModelError, match="weight w: holds inf at row 33, column 277,"):
        stored(job)


def test_a_file_cut_off_between_two_bands_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "TILE_BYTES", 16384)
    (tmp_path / "w").write_bytes(bytes(32 * 256 * 4))
    window = View.contiguous(DataFile.open(tmp_path / "w"), 0, ir.DataType.FLOAT, (256, 32)).transpose()
    job = QuantizeJob(window, BlockFormat(4, 32, symmetric=False, scale_dtype="float32"), "rtn", "w")
    found = job.banded((0, 32))
    assert next(found)[0] == (0, 64)
    with (tmp_path / "w").open("r+b") as file:
        file.truncate(10000)
    with pytest.raises(ModelError, match="ends at byte 10000 while it is read; it was cut off"):
        next(found)
