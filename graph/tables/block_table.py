"""Quantized tables: what a GatherBlockQuantized means, and the layouts in which that can be written.

One table of codes is read by two operators. MatMulNBits wants B [V, blocks, block_size*bits/8]; GatherBlockQuantized
takes uint8 data of any rank with gather_axis 0 and quantize_axis the last axis. Layouts, all of the same bytes:

`alias`       data [V, blocks*block_size*bits/8]: a second initializer on B's byte range
`shared`      B itself; the Gather yields [..., blocks, block_size], which a Reshape of that activation joins
`correction`  `shared` without zero points, plus a gathered (2^(bits-1) - zero point) * scale
`plain`       no GatherBlockQuantized: standard operators on B, scales and zero points themselves
`reshape`     B behind a Reshape, as the GenAI builder writes it; ONNX Runtime folds it into a second copy in memory
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from onnx_tailor.graph.model import MICROSOFT, TailorModel
from onnx_tailor.graph.shapes import joined_shape
from onnx_tailor.graph.tables.plain_table import gather_plain
from onnx_tailor.graph.tables.scales import read_as
from onnx_tailor.targets import TableForm
from onnx_tailor.weights.corrections import CorrectionJob
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.tensors import Blob, WeightTensor

_DEEP = frozenset({"shared", "correction", "plain"})
"""The layouts whose rows come in blocks, to be joined."""


@dataclass(frozen=True)
class BlockTable:
    """A quantized table as values of the graph: the bytes that MatMulNBits reads, under whatever shapes."""

    name: str
    """What new initializers are named after."""
    codes: ir.Value
    """uint8 [V, blocks, block_size*bits/8]"""
    scales: ir.Value
    """[V, blocks]"""
    zero_points: ir.Value | None
    """uint8 [V, ceil(blocks*bits/8)]"""
    rows: int
    """V, the vocabulary."""
    columns: int
    """K: columns without padding."""
    bits: int
    block_size: int
    read_as: ir.DataType
    """The type in which operators read the scales, and so that of products and rows; the stored one, or wider."""

    @property
    def blocks(self) -> int:
        """Blocks in a row; the last may be padded."""
        return -(-self.columns // self.block_size)

    @property
    def form(self) -> TableForm:
        """What a target's rules ask about."""
        return TableForm(self.bits, self.zero_points is not None, self.blocks * self.bits % 8 == 0)


def tensor_of(value: ir.Value) -> WeightTensor:
    """Return the weight behind an initializer."""
    tensor = WeightTensor.of_value(value)
    assert tensor is not None, value.name
    return tensor


def gather(
    model: TailorModel, anchor: ir.Node, table: BlockTable, ids: ir.Value, layout: str, dtype: ir.DataType, name: str
) -> ir.Value:
    """Insert before `anchor` the nodes that gather the rows `ids` in `layout`; return [..., K] of type `dtype`."""
    kind = table.read_as
    table = _in_shape(model, table)
    if layout == "plain":
        operands = (table.codes, table.scales, table.zero_points)
        result = gather_plain(model, anchor, operands, ids, table.bits, kind, name)
    else:
        result = _gather_blocks(model, anchor, table, ids, layout, name)
    padded = table.blocks * table.block_size
    if layout in _DEEP:
        shape = joined_shape(model, anchor, ids, (padded,), name)
        result = model.insert_before(anchor, "Reshape", [result, shape], name=f"{name}/join", dtype=kind)
    if padded != table.columns:
        bounds = [model.int64s([n], f"{name}/{what}") for what, n in (("from", 0), ("to", table.columns), ("axis", -1))]
        result = model.insert_before(anchor, "Slice", [result, *bounds], name=f"{name}/unpad", dtype=kind)
    if dtype != kind:
        result = model.insert_before(
            anchor, "Cast", [result], attributes={"to": int(dtype)}, name=f"{name}/cast", dtype=dtype
        )
    return result


def _in_shape(model: TailorModel, table: BlockTable) -> BlockTable:
    """Return the table with its values in MatMulNBits' own shapes."""
    shape = (table.rows, table.blocks)
    codes = _shaped(model, table.codes, (*shape, table.block_size * table.bits // 8))
    points = table.zero_points
    if points is not None:
        points = _shaped(model, points, (table.rows, -(-table.blocks * table.bits // 8)))
    return replace(table, codes=codes, scales=_shaped(model, table.scales, shape), zero_points=points)


def _shaped(model: TailorModel, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """Return `value` itself if it has the shape, else an initializer of the model with it, on the same bytes."""
    tensor = tensor_of(value)
    if tensor.dims == shape:
        return value
    for other in list(model.graph.initializers.values()):
        found = WeightTensor.of_value(other) if other.dtype == tensor.dtype else None
        if found is not None and found.blob == tensor.blob and found.dims == shape:
            return other
    return model.initializer(tensor.reshaped(shape, ""), value.name or "table")


def _gather_blocks(
    model: TailorModel, anchor: ir.Node, table: BlockTable, ids: ir.Value, layout: str, name: str
) -> ir.Value:
    """Insert the GatherBlockQuantized, and the Add of a correction."""
    data, scales, points = _operands(model, anchor, table, layout)
    kind = table.read_as
    inputs: list[ir.Value | None] = [data, ids, read_as(model, scales, kind)]
    if points is not None:
        inputs.append(points)
    attributes = {"bits": table.bits, "block_size": table.block_size, "gather_axis": 0}
    result = model.insert_before(
        anchor,
        "GatherBlockQuantized",
        inputs,
        domain=MICROSOFT,
        attributes={**attributes, "quantize_axis": 2 if layout in _DEEP else 1},
        name=name,
        dtype=kind,
    )
    if layout != "correction":
        return result
    stored = _corrections(model, table)
    rows = model.insert_before(
        anchor, "Gather", [stored, ids], attributes={"axis": 0}, name=f"{name}/correction", dtype=stored.dtype
    )
    if stored.dtype != kind:
        rows = model.insert_before(
            anchor, "Cast", [rows], attributes={"to": int(kind)}, name=f"{name}/correction/cast", dtype=kind
        )
    return model.insert_before(anchor, "Add", [result, rows], name=f"{name}/corrected", dtype=kind)


def _operands(
    model: TailorModel, anchor: ir.Node, table: BlockTable, layout: str
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Return data, scales and zero points of the GatherBlockQuantized."""
    codes, scales, points = tensor_of(table.codes), tensor_of(table.scales), table.zero_points
    rows, blocks, blob = codes.dims
    if layout in {"shared", "correction"}:
        deep = model.initializer(scales.reshaped((rows, blocks, 1), ""), f"{table.scales.name}_3d")
        if layout == "correction" or points is None:
            return table.codes, deep, None
        return (
            table.codes,
            deep,
            model.initializer(tensor_of(points).reshaped((rows, blocks, 1), ""), f"{points.name}_3d"),
        )
    if layout == "reshape":
        flat = model.int64s([rows, blocks * blob], f"{table.name}_flat_shape")
        data = model.insert_before(
            anchor, "Reshape", [table.codes, flat], name=f"{table.name}/flat", dtype=ir.DataType.UINT8
        )
        return data, table.scales, points
    data = model.initializer(codes.reshaped((rows, blocks * blob), ""), f"{table.codes.name}_2d")
    return data, table.scales, points


def _corrections(model: TailorModel, table: BlockTable) -> ir.Value:
    job = correction_job(table)
    assert job is not None
    tensor = WeightTensor(Blob(job, "corrections"), tensor_of(table.scales).dtype, (table.rows, table.blocks, 1))
    return model.initializer(tensor, f"{table.name}_corrections")


def correction_job(table: BlockTable) -> QuantizeJob | CorrectionJob | None:
    """Return what computes the corrections of a table with zero points; None where its parts are not at hand."""
    scales = tensor_of(table.scales)
    assert table.zero_points is not None
    if isinstance(scales.blob.job, QuantizeJob):
        return scales.blob.job
    points = tensor_of(table.zero_points)
    if scales.view is None or points.view is None:
        return None
    rows = points.view.reshape((table.rows, points.size // table.rows))
    return CorrectionJob(scales.view.reshape((table.rows, table.blocks)), rows, table.bits)
