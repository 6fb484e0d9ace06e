"""Equal weights are found, however they lie; others are never taken for equal."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_tailor.weights import equal
from onnx_tailor.weights import view as views
from onnx_tailor.weights.equal import share_equal
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.view import View


def stored(folder: Path, matrices: list[np.ndarray], turned: list[bool]) -> list[WeightTensor]:
    """Store each matrix as it is or transposed; return tensors that all read as the matrices do."""
    path, offset, tensors = folder / "w", 0, []
    path.write_bytes(b"".join((m.T if t else m).tobytes() for m, t in zip(matrices, turned, strict=True)))
    file = DataFile.open(path)
    for matrix, transposed in zip(matrices, turned, strict=True):
        shape = matrix.T.shape if transposed else matrix.shape
        view = View.contiguous(file, offset, ir.DataType.FLOAT, shape)
        tensors.append(WeightTensor.of_view(view.transpose() if transposed else view, f"w{offset}"))
        offset += matrix.nbytes
    return tensors


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equal_matrices_share_a_blob_and_no_others_do(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = data.draw(st.sampled_from([(16, 16), (20, 30), (40, 13), (300, 8)]))
    first = np.random.default_rng(0).standard_normal(shape, np.float32)
    matrices = [first]
    for _ in range(data.draw(st.integers(1, 5))):
        other = matrices[data.draw(st.integers(0, len(matrices) - 1))].copy()
        if data.draw(st.booleans()):
            other[data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))] += 1
        matrices.append(other)
    turned = [data.draw(st.booleans()) for _ in matrices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "TILE_BYTES", 500)
        patch.setattr(views, "_MIN_SEGMENT", 8)
        patch.setattr(equal, "_SAMPLE", 64)
        patch.setattr(equal, "INLINE_LIMIT", 16)
        tensors = stored(tmp_path_factory.mktemp("equal"), matrices, turned)
        share_equal(tensors)
    for tensor, matrix in zip(tensors, matrices, strict=True):
        assert np.array_equal(tensor.numpy(), matrix)
    for i, a in enumerate(tensors):
        for j, b in enumerate(tensors[:i]):
            assert (a.blob == b.blob) == np.array_equal(matrices[i], matrices[j])


def test_nothing_is_read_where_no_size_occurs_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = stored(tmp_path, [np.ones((n, 40), np.float32) for n in (40, 50, 60)], [False, True, False])
    monkeypatch.setattr(View, "read", None)
    share_equal(tensors)


def test_weights_that_lie_across_the_file_and_differ_cost_a_few_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    fill = DataFile._fill

    def noted(file: DataFile, handle: FileIO, offset: int, buffer: memoryview) -> None:
        reads.append(buffer.nbytes)
        fill(file, handle, offset, buffer)

    monkeypatch.setattr(DataFile, "_fill", noted)
    matrices = [np.random.default_rng(seed).standard_normal((300, 500), np.float32) for seed in range(4)]
    share_equal(stored(tmp_path, matrices, [True, True, True, False]))
    assert len(reads) == 3 * 16 + 2
    assert sum(reads) == 4 * 64
