"""Read the weight of a MatMulNBits, and find the MatMulNBits that reads the same bytes as something else."""

from __future__ import annotations

import onnx_ir as ir

from onnx_tailor.graph.block_table import BlockTable
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute
from onnx_tailor.graph.scales import read_type, stored_scales
from onnx_tailor.weights.tensors import Blob, WeightTensor


def nbits_nodes(model: TailorModel) -> list[ir.Node]:
    """Return every MatMulNBits node."""
    return [node for node in model.nodes() if node.domain == MICROSOFT and node.op_type == "MatMulNBits"]


def blob_of(value: ir.Value | None) -> Blob | None:
    """Return the bytes of a stored weight, or None for anything else."""
    tensor = WeightTensor.of_value(value) if value is not None else None
    return tensor.blob if tensor is not None else None


def readers_of(model: TailorModel, codes: ir.Value | None) -> list[ir.Node]:
    """Return the MatMulNBits nodes whose weight is these bytes, under whatever name and shape."""
    blob = blob_of(codes)
    return [node for node in nbits_nodes(model) if blob is not None and blob_of(node.inputs[1]) == blob]


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
        if tensor.size != _size(shape) or (what == "weight" and tensor.dims != shape):
            return f"its {what} {list(tensor.dims)} are not {list(shape)}"
    read_as = read_type(node.inputs[2]) or ir.DataType.FLOAT  # type: ignore[arg-type]  # refused above
    return BlockTable(codes.name or "table", codes, scales, points, rows, columns, bits, block, read_as)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
