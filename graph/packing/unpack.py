"""Write the parts of a packed projection in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnx_tailor.graph.integers import dimensions
from onnx_tailor.graph.model import TailorModel, is_op
from onnx_tailor.graph.packing.linear import Operand
from onnx_tailor.graph.packing.packed import Packed, Part
from onnx_tailor.graph.packing.part_names import node_name, operand_name, part_metadata
from onnx_tailor.graph.packing.route import Step
from onnx_tailor.weights.tensors import WeightTensor

_ROWS = "N"
"""The attribute of MatMulNBits that states the rows."""


def unpack(model: TailorModel, packed: Packed) -> None:
    """Replace the packed projection by one for each part; what nothing reads any more is left to a sweep."""
    values = [_write(model, packed, part) for part in packed.parts]
    attention = packed.division.nodes[0]
    for index, (part, value) in enumerate(zip(packed.parts, values, strict=True)):
        if not part.share.outputs:
            attention.replace_input_with(index, value)
        for number, old in enumerate(part.share.outputs):
            _replace(model, old, value, number)


def _write(model: TailorModel, packed: Packed, part: Part) -> ir.Value:
    """Write one part's projection and the nodes behind it; return what the dividing node yielded for it."""
    linear, rows = packed.linear, part.stop - part.start
    inputs = list(linear.node.inputs)
    for operand, tensor in part.operands:
        inputs[operand.index] = _stored(model, packed, part, linear.node, operand, tensor)
    changed = {_ROWS: ir.AttrInt64(_ROWS, rows)} if _ROWS in linear.node.attributes else {}
    value = _copy(model, packed, part, linear.node, inputs, _resized(linear.output, -1, rows), changed)
    vectors = iter(part.vectors)
    for step in packed.division.route.steps:
        inputs = list(step.node.inputs)
        inputs[step.index] = value
        if step.vector is not None:
            operand, tensor = next(vectors)
            inputs[operand.index] = _stored(model, packed, part, linear.node, operand, tensor)
        places = rows * step.tail[0] // linear.rows
        if step.leading is not None:
            inputs[1] = _shape(model, step, places, node_name(step.node, part.role, packed.roles))
        value = _copy(model, packed, part, step.node, inputs, _resized(step.node.outputs[0], step.axes[0], places))
    return value


def _copy(
    model: TailorModel,
    packed: Packed,
    part: Part,
    node: ir.Node,
    inputs: Sequence[ir.Value | None],
    shape: ir.Shape | None,
    changed: Mapping[str, ir.Attr] | None = None,
) -> ir.Value:
    """Insert a node like `node` in front of it."""
    value = model.insert_before(
        node,
        node.op_type,
        inputs,
        domain=node.domain,
        attributes={**node.attributes, **(changed or {})},
        name=node_name(node, part.role, packed.roles),
        dtype=node.outputs[0].dtype,
        shape=shape,
    )
    made = value.producer()
    assert made is not None
    made.metadata_props.update(part_metadata(node, part.role, packed.roles))
    return value


def _stored(
    model: TailorModel, packed: Packed, part: Part, node: ir.Node, operand: Operand, tensor: WeightTensor
) -> ir.Value:
    """Register a part's slice of an operand, behind the same Transpose and Cast nodes."""
    name = operand_name(node, operand.name, operand.kind, part.role, packed.roles)
    value = model.initializer(tensor, name)
    for between in operand.through:
        value = model.insert_before(
            between,
            between.op_type,
            [value],
            attributes=dict(between.attributes),
            name=node_name(between, part.role, packed.roles),
            dtype=between.outputs[0].dtype,
        )
    return value


def _shape(model: TailorModel, step: Step, places: int, name: str) -> ir.Value:
    """Return the shape [leading..., places, tail[1:]...] for a Reshape."""
    assert step.leading is not None
    numbers: list[int] = []
    pieces: list[ir.Value] = []
    for piece in (*step.leading, places, *step.tail[1:]):
        if isinstance(piece, int):
            numbers.append(piece)
            continue
        if numbers:
            pieces.append(model.int64s(numbers, f"{name}/shape"))
        numbers = []
        pieces.append(piece)
    pieces.append(model.int64s(numbers, f"{name}/shape"))
    if len(pieces) == 1:
        return pieces[0]
    return model.insert_before(
        step.node, "Concat", pieces, attributes={"axis": 0}, name=f"{name}/shape", dtype=ir.DataType.INT64
    )


def _resized(value: ir.Value, axis: int, places: int) -> ir.Shape | None:
    if value.shape is None:
        return None
    dims = list(value.shape)
    dims[axis] = places
    return ir.Shape(dims)


def _replace(model: TailorModel, old: ir.Value, value: ir.Value, number: int) -> None:
    """Let `value` stand for the output `old` of a dividing node, under its name."""
    node, name, new = old.producer(), old.name, value
    assert node is not None
    if is_op(node, "Gather") and dimensions(node.inputs[1]) == []:  # it took one place and dropped its dimension
        new = model.insert_before(
            node,
            "Gather",
            [value, model.constant(ir.tensor(0, ir.DataType.INT64), f"{name}/first")],
            attributes=dict(node.attributes),
            name=model.retire(node) or f"{name}/place",
            dtype=old.dtype,
            shape=old.shape,
        )
    elif number:  # a second reader of the same range; one value cannot be two outputs
        new = model.insert_before(node, "Identity", [value], name=f"{name}/copy", dtype=old.dtype, shape=old.shape)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = None
    new.name = name
