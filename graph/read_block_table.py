"""Read what a GatherBlockQuantized in somebody's file means, whatever layout it is written in."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.block_table import BlockTable
from onnx_tailor.graph.model import TailorModel, attribute, is_op
from onnx_tailor.weights.tensors import WeightTensor

_ATTRIBUTES = ("bits", "block_size", "gather_axis", "quantize_axis")


@dataclass(frozen=True)
class FoundTable:
    """A GatherBlockQuantized, its table, and the nodes behind it that belong to its layout."""

    node: ir.Node
    table: BlockTable
    layout: str
    """`alias`, `shared`, `correction` or `reshape`."""
    explicit: bool
    """All four attributes are written."""
    output: ir.Value
    """[..., K]: where the gathered rows are whole."""


def read_block_table(model: TailorModel, node: ir.Node) -> FoundTable | str:
    """Return the table that `node` reads, or the reason why its meaning is not certain."""
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 128)
    data, scales = node.inputs[0], node.inputs[2]
    points = node.inputs[3] if len(node.inputs) > 3 else None
    reshaped = data is not None and is_op(data.producer(), "Reshape")
    if reshaped and data is not None:
        data = data.producer().inputs[0]  # type: ignore[union-attr]  # is_op has seen the producer
    reason = _objection(node, data, scales, points, bits)
    if reason is not None:
        return reason
    assert data is not None
    assert scales is not None
    codes, scale = _weight(data), _weight(scales)
    blob = block * bits // 8
    if codes is None or scale is None or blob == 0 or codes.nbytes % blob:
        return f"its data {data.name} holds no whole blocks of {block} weights in {bits} bits"
    rows = codes.dims[0]
    blocks = codes.nbytes // blob // rows
    if scale.size != rows * blocks:
        return f"its scales {list(scale.dims)} do not fit {rows} rows of {blocks} blocks"
    deep = len(codes.dims) == 3 and not reshaped
    output, columns, corrected = _tail(node, deep, blocks * block)
    name = (data.name or "table").removesuffix("_2d")
    table = BlockTable(
        name,
        _shaped(model, data, (rows, blocks, blob)),
        _shaped(model, scales, (rows, blocks)),
        _points(model, node, points, rows, -(-blocks * bits // 8)),
        columns,
        bits,
        block,
    )
    if corrected is not None:
        return (
            FoundTable(node, table, "correction", explicit=True, output=output)
            if corrected
            else "its correction is unknown"
        )
    layout = "shared" if deep else "reshape" if reshaped else "alias"
    explicit = all(attribute_ in node.attributes for attribute_ in _ATTRIBUTES)
    return FoundTable(node, table, layout, explicit=explicit, output=output)


def _objection(
    node: ir.Node, data: ir.Value | None, scales: ir.Value | None, points: ir.Value | None, bits: int
) -> str | None:
    if attribute(node, "gather_axis", 0) != 0:
        return "it gathers along another axis than the first"
    for what, value in (("data", data), ("scales", scales)):
        if value is None or _weight(value) is None:
            return f"its {what} are no stored weight"
    if data is None or data.dtype != ir.DataType.UINT8:
        return f"its data are {data.dtype if data is not None else None}, not uint8 bytes"
    if bits not in {2, 4, 8}:
        return f"it has {bits} bits"
    if points is not None and (_weight(points) is None or points.dtype != ir.DataType.UINT8):
        return "its zero points are no stored uint8 weight"
    return None


def _weight(value: ir.Value) -> WeightTensor | None:
    tensor = value.const_value
    return tensor if isinstance(tensor, WeightTensor) and not value.is_graph_input() else None


def _shaped(model: TailorModel, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """Return `value` itself if it has the shape, else an initializer of the model with it, on the same bytes."""
    tensor = _weight(value)
    assert tensor is not None
    if tensor.dims == shape:
        return value
    for other in model.graph.initializers.values():
        found = other.const_value
        if isinstance(found, WeightTensor) and found.blob == tensor.blob and found.dims == shape:
            return other
    return model.initializer(tensor.reshaped(shape, ""), value.name or "table")


def _points(model: TailorModel, node: ir.Node, points: ir.Value | None, rows: int, row_bytes: int) -> ir.Value | None:
    if points is not None:
        return _shaped(model, points, (rows, row_bytes))
    if _correction(node) is None:
        return None
    # A corrected table keeps its zero points with the MatMulNBits that shares its codes.
    for use in node.inputs[0].uses() if node.inputs[0] is not None else ():
        if use.node.op_type == "MatMulNBits" and use.idx == 1 and len(use.node.inputs) > 3:
            return use.node.inputs[3]
    return None


def _tail(node: ir.Node, deep: bool, padded: int) -> tuple[ir.Value, int, bool | None]:
    """Follow the nodes of the layout behind the Gather. Return the last value, K, and whether a correction is known."""
    value, corrected = node.outputs[0], None
    if deep:
        added = _correction(node)
        if added is not None:
            value = added.outputs[0]
            corrected = any(reader.op_type == "MatMulNBits" for reader in _readers(node.inputs[0]))
        join = _only_user(value)
        if is_op(join, "Reshape"):
            value = join.outputs[0]  # type: ignore[union-attr]  # is_op has seen it
    cut = _only_user(value)
    if is_op(cut, "Slice") and cut is not None and len(cut.inputs) == 4:
        bounds = [_integers(v) for v in cut.inputs[1:4]]
        if bounds[0] == [0] and bounds[2] == [-1] and bounds[1] is not None and bounds[1][0] < padded:
            return cut.outputs[0], bounds[1][0], corrected
    return value, padded, corrected


def _correction(node: ir.Node) -> ir.Node | None:
    add = _only_user(node.outputs[0])
    if not is_op(add, "Add") or add is None:
        return None
    return add if any(v is not None and is_op(v.producer(), "Gather") for v in add.inputs) else None


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _readers(value: ir.Value | None) -> list[ir.Node]:
    return [use.node for use in value.uses()] if value is not None else []


def _integers(value: ir.Value | None) -> list[int] | None:
    tensor = value.const_value if value is not None else None
    return None if tensor is None else [int(n) for n in tensor.numpy().reshape(-1)]
