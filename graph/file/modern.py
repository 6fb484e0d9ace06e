"""Forms of a weight that few files have, turned into the usual one: sparse, and an input because the format is old."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnx_tailor.errors import ModelError

_MOST = 64 << 20
"""Bytes of a sparse weight when it is dense: it is held in memory."""
_FREE = 4
"""The IR version since which an initializer need not be an input."""


def free_initializers(model: onnx.ModelProto) -> None:
    """Take the weights out of the inputs where an old format demands that they stand there.

    Since IR version 4 that says that a caller may feed another value; before, it says nothing, and ONNX Runtime takes
    such weights for constants.
    """
    if model.ir_version >= _FREE:
        return
    stored = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = _FREE


def make_dense(model: onnx.ModelProto, path: Path) -> None:
    """Replace sparse initializers of the main graph by dense ones, as ONNX Runtime does at load.

    Raises:
        ModelError: one is not sound, too large, or in a subgraph.
    """
    for sparse in model.graph.sparse_initializer:
        name = sparse.values.name
        if any(each.name == name for each in model.graph.initializer):
            raise ModelError(f"{path}: the graph has two weights called {name!r}; export it again")
        try:
            dense = _dense(sparse)
        except Exception as error:  # strangers' indices
            raise ModelError(f"{path}: the sparse weight {name} cannot be read; store it dense") from error
        model.graph.initializer.append(numpy_helper.from_array(dense, name))
    del model.graph.sparse_initializer[:]


def _dense(sparse: onnx.SparseTensorProto) -> npt.NDArray[np.generic]:
    dims = tuple(sparse.dims)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in (sparse.values, sparse.indices)):
        raise ValueError("its parts lie in a data file")
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    if any(n < 0 for n in dims) or math.prod(dims) * values.itemsize > _MOST:
        raise ValueError("it is too large")
    dense = np.zeros(dims, values.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dims)
    if flat.dtype != np.int64 or (flat.size and flat.min() < 0) or flat.shape != values.shape:
        raise ValueError("its indices do not fit")
    dense.reshape(-1)[flat] = values
    return dense
