"""Find the quantized tables in somebody's file and read what they mean, whatever layout they are written in."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.block_table import BlockTable
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute, is_op
from onnx_tailor.graph.plain_table import PlainRows, read_plain
from onnx_tailor.weights.tensors import WeightTensor

_ATTRIBUTES = ("bits", "block_size", "gather_axis", "quantize_axis")


@dataclass(frozen=True)
class FoundTable:
    """The nodes that gather the rows of one quantized table, in a layout."""

    node: ir.Node
    """The GatherBlockQuantized; in the layout `plain`, the multiplication by the scales."""
    table: BlockTable
    ids: ir.Value
    layout: str
    """`alias`, `shared`, `correction`, `plain` or `reshape`."""
    explicit: bool
    """All four attributes are written."""
    output: ir.Value
    """[..., K]: where the gathered rows are whole."""


@dataclass(frozen=True)
class Unread:
    """A GatherBlockQuantized whose meaning is not certain."""

    node: ir.Node
    reason: str


def find_block_tables(model: TailorModel) -> list[FoundTable | Unread]:
    """Return every quantized table of which rows are gathered."""
    found: list[FoundTable | Unread] = []
    for node in list(model.nodes()):
        plain = read_plain(node)
        if plain is not None:
            found.append(_plain(node, plain))
        elif node.domain == MICROSOFT and node.op_type == "GatherBlockQuantized":
            table = read_block_table(model, node)
            found.append(Unread(node, table) if isinstance(table, str) else table)
    return found


def _plain(node: ir.Node, plain: PlainRows) -> FoundTable:
    codes = WeightTensor.of_value(plain.codes)
    assert codes is not None
    blocks, block = codes.dims[1], codes.dims[2] * 8 // plain.bits
    output, columns, _ = _tail(node, plain.output, deep=True, padded=blocks * block)
    name = plain.codes.name or "table"
    table = BlockTable(name, plain.codes, plain.scales, plain.zero_points, columns, plain.bits, block)
    return FoundTable(node, table, plain.ids, "plain", explicit=True, output=output)


def read_block_table(model: TailorModel, node: ir.Node) -> FoundTable | str:
    """Return the table that the GatherBlockQuantized `node` reads, or the reason why its meaning is not certain."""
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
    codes, scale = WeightTensor.of_value(data), WeightTensor.of_value(scales)
    blob = block * bits // 8
    if codes is None or scale is None or blob == 0 or codes.nbytes % blob:
        return f"its data {data.name} holds no whole blocks of {block} weights in {bits} bits"
    rows = codes.dims[0]
    blocks = codes.nbytes // blob // rows
    if scale.size != rows * blocks:
        return f"its scales {list(scale.dims)} do not fit {rows} rows of {blocks} blocks"
    deep = len(codes.dims) == 3 and not reshaped
    output, columns, corrected = _tail(node, node.outputs[0], deep=deep, padded=blocks * block)
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
    ids = node.inputs[1]
    assert ids is not None
    if corrected is False:
        return "its correction is unknown"
    layout = "correction" if corrected else "shared" if deep else "reshape" if reshaped else "alias"
    explicit = all(attribute_ in node.attributes for attribute_ in _ATTRIBUTES)
    return FoundTable(node, table, ids, layout, explicit=explicit, output=output)


def _objection(
    node: ir.Node, data: ir.Value | None, scales: ir.Value | None, points: ir.Value | None, bits: int
) -> str | None:
    if attribute(node, "gather_axis", 0) != 0:
        return "it gathers along another axis than the first"
    for what, value in (("data", data), ("scales", scales)):
        if value is None or WeightTensor.of_value(value) is None:
            return f"its {what} are no stored weight"
    if data is None or data.dtype != ir.DataType.UINT8:
        return f"its data are {data.dtype if data is not None else None}, not uint8 bytes"
    if bits not in {2, 4, 8}:
        return f"it has {bits} bits"
    if points is not None and (WeightTensor.of_value(points) is None or points.dtype != ir.DataType.UINT8):
        return "its zero points are no stored uint8 weight"
    return None


def _shaped(model: TailorModel, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """Return `value` itself if it has the shape, else an initializer of the model with it, on the same bytes."""
    tensor = WeightTensor.of_value(value)
    assert tensor is not None
    if tensor.dims == shape:
        return value
    for other in list(model.graph.initializers.values()):
        found = WeightTensor.of_value(other) if other.dtype == tensor.dtype else None
        if found is not None and found.blob == tensor.blob and found.dims == shape:
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


def _tail(node: ir.Node, value: ir.Value, *, deep: bool, padded: int) -> tuple[ir.Value, int, bool | None]:
    """Follow the nodes of the layout behind `value`. Return the last value, K, and whether a correction is known."""
    corrected = None
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
