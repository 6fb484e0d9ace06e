"""Quantized tables whose codes are of an ONNX type of four bits, as ONNX Runtime's quantizer writes a Gather.

Before: GatherBlockQuantized(data INT4 or UINT4 [V, K], ids, scales [V, blocks], zero points [V, blocks])
A MatMulNBits stores the same codes as bytes, and signed ones 8 higher; so a head can hold the same table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute
from onnx_tailor.graph.tables.block_table import BlockTable, tensor_of
from onnx_tailor.graph.tables.nbits_weight import Heads
from onnx_tailor.graph.tables.same_table import block_views
from onnx_tailor.graph.tables.scales import stored_scales
from onnx_tailor.quant.quantize import unpack
from onnx_tailor.weights.compare import compare
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.view import Window

_TYPES = {ir.DataType.INT4: 8, ir.DataType.UINT4: 0}
"""How much higher a MatMulNBits stores the same code."""
_TILE = 4 << 20


@dataclass(frozen=True)
class TypedTable:
    """One such table, with where its parts lie."""

    node: ir.Node
    rows: int
    columns: int
    block_size: int
    dtype: ir.DataType
    codes: Window
    """uint8 [V, K/2]: the bytes."""
    scales: Window
    """[V, blocks]"""
    zero_points: Window | None
    """uint8 [V * blocks / 2]: the bytes."""
    nbytes: int

    @property
    def blocks(self) -> int:
        """Blocks in a row."""
        return -(-self.columns // self.block_size)


def typed_tables(model: TailorModel) -> Iterator[TypedTable]:
    """Yield the tables of this form whose meaning is certain."""
    for node in list(model.nodes()):
        if node.domain == MICROSOFT and node.op_type == "GatherBlockQuantized":
            table = _read(node)
            if table is not None:
                yield table


def head_of(heads: Heads, typed: TypedTable) -> tuple[ir.Node, BlockTable] | None:
    """Return the MatMulNBits that multiplies by the very values of the table, and its weight."""
    alike = heads.by_shape.get((typed.rows, typed.columns), [])
    return next(((node, table) for node, table in alike if _same(typed, table)), None)


def _read(node: ir.Node) -> TypedTable | None:
    """Return the table; None for other data, other axes, and rows that do not end with a byte."""
    data, scales = node.inputs[0], stored_scales(node.inputs[2]) if len(node.inputs) > 2 else None
    tensor = WeightTensor.of_value(data) if data is not None else None
    scale = WeightTensor.of_value(scales) if scales is not None else None
    if tensor is None or scale is None or tensor.dtype not in _TYPES or len(tensor.dims) != 2:
        return None
    rows, columns = tensor.dims
    block = attribute(node, "block_size", 128)
    axes = attribute(node, "gather_axis", 0), attribute(node, "quantize_axis", 1) % 2
    blocks = -(-columns // block)
    if axes != (0, 1) or block < 16 or columns % 2 or scale.dims != (rows, blocks):
        return None
    points = node.inputs[3] if len(node.inputs) > 3 else None
    point = WeightTensor.of_value(points) if points is not None else None
    if points is not None and (point is None or point.dtype != tensor.dtype or point.dims != (rows, blocks)):
        return None
    if points is None and tensor.dtype == ir.DataType.UINT4:  # a zero of 0, which no symmetric head has
        return None
    views = [each.view if each is not None else None for each in (tensor, scale, point)]
    codes, lengths, zeros = views
    if codes is None or lengths is None or not codes.is_contiguous or (point is not None and zeros is None):
        return None
    sizes = [each.nbytes for each in (tensor, scale, point) if each is not None]
    raw = _bytes(tensor).reshape((rows, columns // 2))
    zero_bytes = _bytes(point) if point is not None else None
    return TypedTable(node, rows, columns, block, tensor.dtype, raw, lengths, zero_bytes, sum(sizes))


def _bytes(tensor: WeightTensor) -> Window:
    view = tensor.view
    assert view is not None
    return WeightTensor(tensor.blob, ir.DataType.UINT8, (tensor.nbytes,)).view or view


def _same(typed: TypedTable, table: BlockTable) -> bool:
    """Whether codes, scales and zero points are equal; each is read once, in tiles of rows."""
    views = block_views(table)
    form = typed.rows, typed.columns, typed.block_size, 4, typed.scales.dtype
    if views is None or form != (
        table.rows,
        table.columns,
        table.block_size,
        table.bits,
        tensor_of(table.scales).dtype,
    ):
        return False
    if (typed.zero_points is None) != (views.zero_points is None):
        return False
    flip = 0x11 * _TYPES[typed.dtype]
    codes = views.codes.reshape((table.rows, views.codes.size // table.rows))
    step = 2 * max(1, _TILE // max(1, typed.columns))  # even, so that zero points start with a byte
    return compare(typed.scales, views.scales).equal and all(
        _equal_rows(typed, codes, views.zero_points, start, min(start + step, typed.rows), flip)
        for start in range(0, typed.rows, step)
    )


def _equal_rows(typed: TypedTable, codes: Window, zero_points: Window | None, start: int, stop: int, flip: int) -> bool:
    own = np.asarray(typed.codes.rows(start, stop).read()).view(np.uint8)
    other = np.asarray(codes.rows(start, stop).read())[:, : own.shape[1]]
    # Subtracting 8 from a nibble is flipping its highest bit.
    if not np.array_equal(own ^ np.uint8(flip), other):
        return False
    if typed.zero_points is None or zero_points is None:
        return True
    blocks = typed.blocks
    first, last = start * blocks // 2, -(-stop * blocks // 2)
    packed: npt.NDArray[np.uint8] = np.asarray(typed.zero_points.rows(first, last).read()).view(np.uint8)
    ours = unpack((packed ^ np.uint8(flip))[None], 4)[0, : (stop - start) * blocks].reshape(-1, blocks)
    theirs = unpack(np.asarray(zero_points.rows(start, stop).read()).view(np.uint8), 4)[:, :blocks]
    return np.array_equal(ours, theirs)
