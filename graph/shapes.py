"""Shapes that are computed in the graph, for activations whose rank or dimensions the file does not state."""

from __future__ import annotations

import onnx_ir as ir

from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.projections import leading_shape


def joined_shape(model: TailorModel, anchor: ir.Node, ids: ir.Value, last: tuple[int, ...], name: str) -> ir.Value:
    """Return the shape [dimensions of ids..., last...], computed before `anchor` where the rank is unknown."""
    if ids.shape is not None:
        return model.int64s([*[0] * len(ids.shape), *last], f"{name}/joined_shape")
    # One dimension more than ids, so that `leading_shape` returns all of ids' own.
    axis = model.int64s([-1], f"{name}/last_axis")
    deeper = model.insert_before(anchor, "Unsqueeze", [ids, axis], name=f"{name}/deeper", dtype=ids.dtype)
    leading = leading_shape(model, anchor, deeper, name)
    tail = model.int64s([*last], f"{name}/columns")
    return model.insert_before(
        anchor, "Concat", [leading, tail], attributes={"axis": 0}, name=f"{name}/joined", dtype=ir.DataType.INT64
    )
