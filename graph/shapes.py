"""Shapes of activations: computed in the graph where the file does not state them; dimensions put in and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from onnx_tailor.graph.integers import constant_integers
from onnx_tailor.graph.model import TailorModel, is_op
from onnx_tailor.graph.projections import leading_shape

LEAST_OPSET = 11
"""The first in which Slice takes inputs and Unsqueeze counts from behind, as rows of quantized tables need them."""


def joined_shape(model: TailorModel, anchor: ir.Node, ids: ir.Value, last: tuple[int, ...], name: str) -> ir.Value:
    """Return the shape [dimensions of ids..., last...], computed before `anchor` where the rank is unknown."""
    if ids.shape is not None:
        return model.int64s([*[0] * len(ids.shape), *last], f"{name}/joined_shape")
    # One dimension more than ids, so that `leading_shape` returns all of ids' own.
    deeper = change_rank(model, anchor, "Unsqueeze", ids, [-1], f"{name}/deeper", f"{name}/last_axis")
    leading = leading_shape(model, anchor, deeper, name)
    tail = model.int64s([*last], f"{name}/columns")
    return model.insert_before(
        anchor, "Concat", [leading, tail], attributes={"axis": 0}, name=f"{name}/joined", dtype=ir.DataType.INT64
    )


def states_joined_shape(shape: ir.Value | None, ids: ir.Value, last: int) -> bool:
    """Whether `shape` is [dimensions of ids..., last], as a constant or as `joined_shape` computes it."""
    node = shape.producer() if shape is not None else None
    if is_op(node, "Concat") and node is not None and len(node.inputs) == 2:
        leading, tail = node.inputs
        deeper = _measured(leading)
        inside = deeper.producer() if deeper is not None else None
        return constant_integers(tail) == [last] and is_op(inside, "Unsqueeze") and _first(inside) is ids
    stated, rank = constant_integers(shape), None if ids.shape is None else len(ids.shape)
    if stated is None or (rank is not None and len(stated) != rank + 1):
        return False
    known = [0] * (len(stated) - 1) if ids.shape is None else list(ids.shape)
    kept = all(n in {0, -1, size} for n, size in zip(stated, known, strict=False))
    return kept and stated.count(-1) < 2 and stated[-1] in {last, -1}


def _measured(value: ir.Value | None) -> ir.Value | None:
    """Return of what `leading_shape` computes the shape but for its last dimension."""
    node = value.producer() if value is not None else None
    if is_op(node, "Slice"):
        value = _first(node)
        node = value.producer() if value is not None else None
    return _first(node) if is_op(node, "Shape") else None


def _first(node: ir.Node | None) -> ir.Value | None:
    return node.inputs[0] if node is not None else None


def change_rank(
    model: TailorModel,
    anchor: ir.Node,
    op_type: Literal["Squeeze", "Unsqueeze"],
    value: ir.Value,
    axes: Sequence[int],
    name: str,
    axes_name: str,
) -> ir.Value:
    """Drop dimensions of one, or put them in, before `anchor`; `axes` are an input from opset 13 on."""
    if model.opset >= 13:
        inputs = [value, model.int64s(axes, axes_name)]
        return model.insert_before(anchor, op_type, inputs, name=name, dtype=value.dtype)
    return model.insert_before(anchor, op_type, [value], attributes={"axes": axes}, name=name, dtype=value.dtype)
