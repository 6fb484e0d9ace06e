"""Write one packed projection in the place of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.packing.linear import Operand
from onnx_tailor.graph.packing.packable import Packable
from onnx_tailor.graph.packing.part_names import packed_metadata, packed_name, packed_operand_name, packed_spelling
from onnx_tailor.weights.tensors import WeightTensor

_ROWS = "N"
"""The attribute of MatMulNBits that states the rows."""


def pack(model: TailorModel, packable: Packable) -> None:
    """Replace the projections by one; what nothing reads any more is left to a sweep."""
    members = packable.members
    first, rows = members[0].linear.node, sum(member.linear.rows for member in members)
    anchor = _earliest([member.linear.node for member in members])
    inputs = list(first.inputs)
    for index, (operand, tensor) in enumerate(packable.operands):
        alike = [member.linear.operands[index] for member in members]
        inputs[operand.index] = _stored(model, packable, anchor, alike, tensor)
    changed = {_ROWS: ir.AttrInt64(_ROWS, rows)} if _ROWS in first.attributes else {}
    value = _copy(model, packable, anchor, [member.linear.node for member in members], inputs, changed)
    steps = [member.bias for member in members if member.bias is not None]
    if packable.bias is not None:
        inputs = list(steps[0].node.inputs)
        vectors = [step.vector for step in steps if step.vector is not None]
        inputs[steps[0].index] = value
        inputs[vectors[0].index] = _stored(model, packable, anchor, vectors, packable.bias)
        value = _copy(model, packable, anchor, [step.node for step in steps], inputs, {})
    if packable.attention is None:
        _divide(model, packable, anchor, value)
        return
    for index in range(3):
        packable.attention.replace_input_with(index, None if index else value)


def _earliest(nodes: Sequence[ir.Node]) -> ir.Node:
    graph = nodes[0].graph
    assert graph is not None
    return next(node for node in graph if node in nodes)


def _copy(
    model: TailorModel,
    packable: Packable,
    anchor: ir.Node,
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value | None],
    changed: Mapping[str, ir.Attr],
) -> ir.Value:
    """Insert a node like the first of `nodes`, which are the members' own, for all of them."""
    first, old = nodes[0], nodes[0].outputs[0]
    shape = None
    if old.shape is not None:
        shape = ir.Shape([*list(old.shape)[:-1], sum(member.linear.rows for member in packable.members)])
    names = [node.name or "" for node in nodes]
    value = model.insert_before(
        anchor,
        first.op_type,
        inputs,
        domain=first.domain,
        attributes={**first.attributes, **changed},
        name=packed_name(names, packable.roles) or f"{names[0]}/{packed_spelling(packable.roles)}",
        dtype=old.dtype,
        shape=shape,
    )
    made = value.producer()
    assert made is not None
    made.metadata_props.update(packed_metadata(nodes, packable.roles))
    return value


def _stored(
    model: TailorModel, packable: Packable, anchor: ir.Node, operands: Sequence[Operand], tensor: WeightTensor
) -> ir.Value:
    """Register an operand of all members, behind the same Transpose and Cast nodes as theirs."""
    nodes = [member.linear.node for member in packable.members]
    name = packed_operand_name(nodes, [operand.name for operand in operands], operands[0].kind, packable.roles)
    value = model.initializer(tensor, name)
    for between in operands[0].through:
        value = model.insert_before(
            anchor,
            between.op_type,
            [value],
            attributes=dict(between.attributes),
            name=f"{name}/{between.op_type}",
            dtype=between.outputs[0].dtype,
        )
    return value


def _divide(model: TailorModel, packable: Packable, anchor: ir.Node, value: ir.Value) -> None:
    """Insert the Split whose outputs the members' readers read."""
    sizes = [member.linear.rows for member in packable.members]
    made = value.producer()
    assert made is not None
    name = f"{made.name}/split"
    inputs, attributes = [value], {"axis": ir.AttrInt64("axis", -1)}
    if model.opset >= 13:
        inputs.append(model.int64s(sizes, f"{name}/sizes"))
    else:
        attributes["split"] = ir.AttrInt64s("split", sizes)
    node = ir.node("Split", inputs, attributes=attributes, name=model.fresh(name), num_outputs=len(sizes))
    assert anchor.graph is not None
    anchor.graph.insert_before(anchor, node)
    for member, new in zip(packable.members, node.outputs, strict=True):
        old = member.output
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new)
        new.name, old.name = old.name, None
