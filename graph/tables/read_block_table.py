"""Find the quantized tables in somebody's file and read what they mean, whatever layout they are written in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute, is_op
from onnx_tailor.graph.tables.block_table import BlockTable
from onnx_tailor.graph.tables.broken_table import attribute_faults, float_table, lost_table, shape_faults
from onnx_tailor.graph.tables.layout_tail import Tail, layout_tail
from onnx_tailor.graph.tables.nbits_weight import Heads, blob_of, nbits_table
from onnx_tailor.graph.tables.plain_table import PlainRows, read_plain
from onnx_tailor.graph.tables.scales import read_type, stored_scales
from onnx_tailor.weights.tensors import WeightTensor


@dataclass(frozen=True)
class FoundTable:
    """The nodes that gather the rows of one quantized table, in a layout."""

    node: ir.Node
    """The GatherBlockQuantized; in the layout `plain`, the multiplication by the scales."""
    table: BlockTable
    ids: ir.Value
    layout: str
    """`alias`, `shared`, `correction`, `plain` or `reshape`; `broken` where it is none of them."""
    output: ir.Value
    """[..., K]: where the gathered rows are whole."""
    faults: tuple[str, ...] = ()
    """What is wrong with the way it is written, though its meaning is certain."""
    certainty: str = ""
    """How the meaning of a broken one is known."""


@dataclass(frozen=True)
class Unread:
    """A GatherBlockQuantized, or the end of the layout `plain`, whose meaning is not certain."""

    node: ir.Node
    reason: str


def find_block_tables(model: TailorModel) -> list[FoundTable | Unread]:
    """Return every quantized table of which rows are gathered; edits nothing."""
    found: list[FoundTable | Unread] = []
    heads = Heads.of(model)
    for node in model.nodes():
        plain = read_plain(node)
        if plain is not None:
            rows = _plain(node, plain)
            found.append(Unread(node, rows) if isinstance(rows, str) else rows)
        elif node.domain == MICROSOFT and node.op_type == "GatherBlockQuantized":
            table = read_block_table(node, heads)
            found.append(Unread(node, table) if isinstance(table, str) else table)
    return found


def _plain(node: ir.Node, plain: PlainRows) -> FoundTable | str:
    codes = WeightTensor.of_value(plain.codes)
    assert codes is not None
    rows, blocks, blob = codes.dims
    block = blob * 8 // plain.bits
    tail = layout_tail(plain.output, plain.ids, deep=True, padded=blocks * block, block_size=block)
    if isinstance(tail, str):
        return tail
    name = plain.codes.name or "table"
    table = BlockTable(
        name, plain.codes, plain.scales, plain.zero_points, rows, tail.columns, plain.bits, block, plain.kind
    )
    return FoundTable(node, table, plain.ids, "plain", tail.output)


def read_block_table(node: ir.Node, heads: Heads) -> FoundTable | str:
    """Return the table that the GatherBlockQuantized `node` reads, or the reason why its meaning is not certain."""
    ids = node.inputs[1] if len(node.inputs) > 1 else None
    if ids is None:
        return "it has no indices"
    data = node.inputs[0]
    reshape = data.producer() if data is not None else None
    if reshape is not None and is_op(reshape, "Reshape"):
        data = reshape.inputs[0]
    else:
        reshape = None
    codes = WeightTensor.of_value(data) if data is not None else None
    if data is None or codes is None or codes.dtype != ir.DataType.UINT8 or 0 in codes.dims or not codes.dims:
        return _mended(node, ids, data, heads)
    own = _own_table(node, data, codes)
    table = _through_the_head(heads, node, data, own)
    if isinstance(table, str):
        return table
    deep = len(codes.dims) == 3 and reshape is None
    faults = (
        *attribute_faults(node, table, last_axis=2 if deep else 1),
        *shape_faults(node, table, reshape, deep=deep),
    )
    padded, block = table.blocks * table.block_size, table.block_size
    tail = layout_tail(node.outputs[0], ids, deep=deep, padded=padded, block_size=block)
    if isinstance(tail, str) and not faults:
        return tail
    if isinstance(tail, str):  # what never ran was to yield whole rows
        tail = Tail(node.outputs[0], padded, None)
    table = replace(table, columns=tail.columns)
    layout = "shared" if deep else "reshape" if reshape is not None else "alias"
    if tail.corrections is not None:
        corrected = _corrected(heads, data, table, tail)
        if corrected is None:
            return f"what is added to its rows, {tail.corrections.name}, is not the correction of a known head"
        layout, table = "correction", corrected
    if table.zero_points is not None and layout != "correction" and (len(node.inputs) < 4 or node.inputs[3] is None):
        faults += (f"it has no zero points, but the head on the same codes has {table.zero_points.name}",)
    return FoundTable(node, table, ids, layout, tail.output, faults, "the head reads the same bytes" if faults else "")


def _mended(node: ir.Node, ids: ir.Value, data: ir.Value | None, heads: Heads) -> FoundTable | str:
    """Read a node whose data are no uint8 codes."""
    if data is not None and data.dtype in {ir.DataType.INT4, ir.DataType.UINT4}:
        return f"its codes are {data.dtype}; tie-embeddings alone reads those, beside a head that holds the same"
    found = lost_table(heads, node, data) if data is None or data.const_value is None else float_table(heads, data)
    if isinstance(found, str):
        return found
    table, fault, certainty = found
    return FoundTable(node, table, ids, "broken", node.outputs[0], (fault,), certainty)


def _own_table(node: ir.Node, data: ir.Value, codes: WeightTensor) -> BlockTable | str:
    """Read the node by its own attributes and shapes."""
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 128)
    read, points = (node.inputs[i] if len(node.inputs) > i else None for i in (2, 3))
    scales = stored_scales(read)
    if attribute(node, "gather_axis", 0) != 0:
        return "it gathers along another axis than the first"
    if bits not in {2, 4, 8} or block < 16:
        return f"it has {bits} bits in blocks of {block}"
    scale = WeightTensor.of_value(scales) if scales is not None else None
    if read is None or scales is None or scale is None:
        return "its scales are no stored weight"
    rows, blob = codes.dims[0], block * bits // 8
    blocks = codes.nbytes // blob // rows
    if codes.nbytes != rows * blocks * blob:
        return f"its data {data.name} are no {rows} rows of whole blocks of {block} weights in {bits} bits"
    if scale.size != rows * blocks:
        return f"its scales {list(scale.dims)} do not fit {rows} rows of {blocks} blocks"
    point = WeightTensor.of_value(points) if points is not None else None
    if points is not None and (point is None or point.dtype != ir.DataType.UINT8):
        return "its zero points are no stored uint8 weight"
    if point is not None and point.nbytes != rows * -(-blocks * bits // 8):
        return f"its zero points {list(point.dims)} are not packed along rows of {blocks} blocks in {bits} bits"
    name = (data.name or "table").removesuffix("_2d")
    padded = blocks * block
    return BlockTable(name, data, scales, points, rows, padded, bits, block, read_type(read) or scale.dtype)


def _through_the_head(heads: Heads, node: ir.Node, data: ir.Value, own: BlockTable | str) -> BlockTable | str:
    """Believe the MatMulNBits on the same codes about their form; it has every attribute and exact shapes."""
    scales, points = (node.inputs[i] if len(node.inputs) > i else None for i in (2, 3))
    scales = stored_scales(scales)
    for head in heads.readers_of(data):
        table = nbits_table(head)
        if isinstance(table, str):
            known = attribute(head, "bits", 4), attribute(head, "block_size", 0)
            if not isinstance(own, str) and known != (own.bits, own.block_size):
                return f"the head {head.name} reads its codes with {known[0]} bits in blocks of {known[1]}, but {table}"
            continue
        same_scales = (
            scales is None or WeightTensor.of_value(scales) is None or blob_of(scales) == blob_of(table.scales)
        )
        same_points = points is None or blob_of(points) in {None, blob_of(table.zero_points)}
        if same_scales and same_points:
            return table
    return own


def _corrected(heads: Heads, data: ir.Value, table: BlockTable, tail: Tail) -> BlockTable | None:
    """Return the table with the zero points that its corrections stand for: those of the head on the same codes."""
    for head in heads.readers_of(data):
        full = nbits_table(head)
        if not isinstance(full, str) and full.zero_points is not None and tail.corrects(full):
            return replace(table, zero_points=full.zero_points)
    return None
