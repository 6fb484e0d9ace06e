"""Read the weight of a MatMulNBits, and find the MatMulNBits that reads the same bytes as something else."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.constants import FLOATS
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute
from onnx_tailor.graph.tables.block_table import BlockTable
from onnx_tailor.graph.tables.scales import read_type, stored_scales
from onnx_tailor.weights.tensors import Blob, WeightTensor


def nbits_nodes(model: TailorModel) -> list[ir.Node]:
    """Return every MatMulNBits node."""
    return [node for node in model.nodes() if node.domain == MICROSOFT and node.op_type == "MatMulNBits"]


def stored_operands(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return codes, scales and, where there are any, zero points of a MatMulNBits, as they are before a Cast."""
    found = (node.inputs[1], *map(stored_scales, node.inputs[2:4]))
    return tuple(value for value in found if value is not None)


def has_float_points(node: ir.Node) -> bool:
    """Whether a MatMulNBits has zero points in the activation's type, and not packed integers."""
    return len(node.inputs) > 3 and read_type(node.inputs[3]) in FLOATS


def blob_of(value: ir.Value | None) -> Blob | None:
    """Return the bytes of a stored weight, or None for anything else."""
    tensor = WeightTensor.of_value(value) if value is not None else None
    return tensor.blob if tensor is not None else None


@dataclass(frozen=True)
class Heads:
    """Every MatMulNBits by what it reads, looked up once: there may be as many quantized tables as layers."""

    by_codes: dict[Blob, list[ir.Node]]
    by_scales: dict[ir.Value, list[ir.Node]]
    by_form: dict[Hashable, list[tuple[ir.Node, BlockTable]]]
    """Those that a Gather could read, by their `form`."""
    by_shape: dict[tuple[int, ...], list[tuple[ir.Node, BlockTable]]]
    """The same by (rows, columns)."""
    others: list[tuple[ir.Node, str]]
    """Those that no Gather can read, and why not."""

    @classmethod
    def of(cls, model: TailorModel) -> Heads:
        """Look at the model as it is now."""
        found = cls({}, {}, {}, {}, [])
        for node in nbits_nodes(model):
            blob, scales, table = blob_of(node.inputs[1]), stored_scales(node.inputs[2]), nbits_table(node)
            if blob is not None:
                found.by_codes.setdefault(blob, []).append(node)
            if scales is not None:
                found.by_scales.setdefault(scales, []).append(node)
            if isinstance(table, str):
                found.others.append((node, table))
            else:
                found.by_form.setdefault(form(table), []).append((node, table))
                found.by_shape.setdefault((table.rows, table.columns), []).append((node, table))
        return found

    def readers_of(self, codes: ir.Value | None) -> list[ir.Node]:
        """Return the nodes whose weight is these bytes, under whatever name and shape."""
        blob = blob_of(codes)
        return self.by_codes.get(blob, []) if blob is not None else []

    def like(self, table: BlockTable) -> Iterable[tuple[ir.Node, BlockTable]]:
        """Return the nodes that read a table of the same form, and what they read."""
        return self.by_form.get(form(table), [])


def form(table: BlockTable) -> Hashable:
    """Return what two tables must have in common to be one: everything but the bytes."""
    points = table.zero_points is None
    return table.rows, table.columns, table.bits, table.block_size, points, table.scales.dtype, table.read_as


def nbits_table(node: ir.Node) -> BlockTable | str:
    """Return the weight of a MatMulNBits as a table, or the reason why it is none that a Gather can read."""
    rows, columns = attribute(node, "N", 0), attribute(node, "K", 0)
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 0)
    codes, scales = node.inputs[1], stored_scales(node.inputs[2])
    points = node.inputs[3] if len(node.inputs) > 3 else None
    if codes is None or scales is None or bits not in {2, 4, 8} or block < 16:
        return f"it has {bits} bits in blocks of {block}"
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        return "its columns are in another order (g_idx)"
    if has_float_points(node):
        return "its zero points are floats, which no operator that gathers rows takes"
    blocks = -(-columns // block)
    wanted = {
        "weight": (codes, ir.DataType.UINT8, (rows, blocks, block * bits // 8)),
        "scales": (scales, scales.dtype, (rows, blocks)),
        "zero points": (points, ir.DataType.UINT8, (rows, -(-blocks * bits // 8))),
    }
    for what, (value, dtype, shape) in wanted.items():
        tensor = WeightTensor.of_value(value) if value is not None else None
        if value is None and what == "zero points":
            continue
        if tensor is None or tensor.dtype != dtype:
            return f"its {what} are no stored {dtype} weight"
        if tensor.size != math.prod(shape) or (what == "weight" and tensor.dims != shape):
            return f"its {what} {list(tensor.dims)} are not {list(shape)}"
    read_as = read_type(node.inputs[2]) or ir.DataType.FLOAT
    return BlockTable(codes.name or "table", codes, scales, points, rows, columns, bits, block, read_as)
