"""Part of the pass `quantize`: weights behind DequantizeLinear, for runtimes that know standard operators alone.

Before: MatMul(h, W)                                              W: [K, N] float
After:  MatMul(h, DequantizeLinear(C, scales, zero_points))       C: [K, N] in 4 or 8 bits, blocks along K
Measured with onnxruntime 1.31 on the CPU: that form is fused into MatMulNBits at load, with accuracy_level 4. A tied
table [V, K] is dequantized row by row for the embedding, by standard operators on the same bytes, and whole for the
head. In a branch of an If, its operands are the branch's own, on the same bytes: the fusion finds no others.
"""

from __future__ import annotations

from functools import cache

import onnx_ir as ir

from onnx_tailor.graph.meaning.candidates import Candidate
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.projections import Projection, match_projection, scaled, wrap_gemm
from onnx_tailor.graph.tables.block_table import BlockTable, gather
from onnx_tailor.graph.tables.scales import read_as
from onnx_tailor.passes.quantize_weight import SCALE_TYPES, describe, widest
from onnx_tailor.report import Change, Skip
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.tensors import Blob, WeightTensor
from onnx_tailor.weights.transposed_codes import TransposedCodes

OPSET = 21
"""The first with blocks in DequantizeLinear."""
_SIGNED = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
_UNSIGNED = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
_Operands = tuple[ir.Value, ir.Value, ir.Value | None]
"""Codes, scales and zero points."""


def match_qdq(candidate: Candidate, job: QuantizeJob) -> Skip | None:
    """Return why the weight cannot stand behind DequantizeLinear, or None if it can; edits nothing."""
    (rows, columns), fmt = job.view.shape, job.format
    reason = None
    if fmt.bits not in _UNSIGNED:
        reason = f"DequantizeLinear of opset {OPSET} has no {fmt.bits} bits"
    elif candidate.stacks:
        reason = "no standard operator gathers matrices of 4 bits"
    elif candidate.tables and columns % fmt.block_size:
        reason = f"its rows of {columns} are no whole blocks of {fmt.block_size}"
    elif candidate.tables and fmt.blocks(columns) * fmt.bits % 8:
        reason = f"the zero points of its rows of {fmt.blocks(columns)} blocks fill no whole bytes"
    elif not candidate.tables and rows * fmt.bits % 8:
        reason = f"{rows} output features of {fmt.bits} bits fill no whole bytes"
    elif any(projection.weight.dtype != widest(candidate) for projection in candidate.projections):
        reason = "its readers take it in two types"
    return None if reason is None else Skip(where=candidate.name, reason=reason)


def rewrite_qdq(model: TailorModel, candidate: Candidate, job: QuantizeJob) -> Change:
    """Put the quantized weight in the place of the float one, for all its readers."""
    name = candidate.name
    if candidate.tables:
        layout, nbytes = "qdq, plain", _table(model, candidate, job)
    else:
        layout, nbytes = "qdq", _weight(model, candidate, job)
    return describe(name, candidate, job, f", {layout}", nbytes, layout)


def _weight(model: TailorModel, candidate: Candidate, job: QuantizeJob) -> int:
    (rows, columns), fmt, name = job.view.shape, job.format, candidate.matrix.name
    turned, blocks, kind = TransposedCodes(job), fmt.blocks(columns), widest(candidate)
    codes_type = _SIGNED[fmt.bits] if fmt.symmetric else _UNSIGNED[fmt.bits]

    @cache
    def operands(graph: ir.Graph) -> _Operands:
        def put(output: str, dtype: ir.DataType, first: int, suffix: str) -> ir.Value:
            tensor = WeightTensor(Blob(turned, output), dtype, (first, rows))
            return model.initializer(tensor, f"{name}_{suffix}", graph)

        codes = put("codes", codes_type, columns, f"q{fmt.bits}")
        scales = put("scales", _scale_type(job), blocks, "scales")
        return codes, scales, None if fmt.symmetric else put("zero_points", codes_type, blocks, "zero_points")

    for projection in candidate.projections:
        current = match_projection(projection.node)
        assert isinstance(current, Projection)
        node = current.node
        assert isinstance(node.graph, ir.Graph)
        weight = _dequantized(model, node, operands(node.graph), kind, 0, fmt.block_size, name)
        own = model.retire(node) or current.name
        result = model.insert_before(node, "MatMul", [current.activation, weight], name=own, dtype=kind)
        made = result.producer()
        assert made is not None
        made.metadata_props.update(node.metadata_props)
        result = scaled(model, current, result, own)
        if current.bias is not None:
            result = model.insert_before(node, "Add", [result, current.bias], name=f"{own}/bias", dtype=kind)
        model.replace(current.output, result)
    return sum(turned.outputs.values())


def _table(model: TailorModel, candidate: Candidate, job: QuantizeJob) -> int:
    (rows, columns), fmt, name = job.view.shape, job.format, candidate.matrix.name
    blocks, kind = fmt.blocks(columns), widest(candidate)

    def put(output: str, dtype: ir.DataType, dims: tuple[int, ...], suffix: str) -> ir.Value:
        return model.initializer(WeightTensor(Blob(job, output), dtype, dims), f"{name}_{suffix}")

    scales = put("scales", _scale_type(job), (rows, blocks), "scales")
    packed = put("codes", ir.DataType.UINT8, (rows, blocks, fmt.blob_bytes), f"q{fmt.bits}")
    points = put("zero_points", ir.DataType.UINT8, (rows, fmt.zero_point_row_bytes(columns)), "zero_points")
    table = BlockTable(name, packed, scales, points, rows, columns, fmt.bits, fmt.block_size, kind)
    for reader in candidate.tables:
        ids = reader.node.inputs[1]
        assert ids is not None
        gathered = model.retire(reader.node) or f"{name}/gather"
        rows_of = gather(model, reader.node, table, ids, "plain", reader.matrix.dtype, gathered)
        model.replace(reader.node.outputs[0], rows_of)
    for projection in candidate.projections:
        current = match_projection(projection.node)
        assert isinstance(current, Projection)
        codes = put("codes", _UNSIGNED[fmt.bits], (rows, columns), f"q{fmt.bits}_2d")
        zeros = put("zero_points", _UNSIGNED[fmt.bits], (rows, blocks), "zero_points_2d")
        weight = _dequantized(model, current.node, (codes, scales, zeros), kind, 1, fmt.block_size, name)
        model.replace(current.output, wrap_gemm(model, current, weight, kind))
    return sum(size for output, size in job.outputs.items() if output != "corrections")


def _dequantized(
    model: TailorModel,
    anchor: ir.Node,
    operands: _Operands,
    kind: ir.DataType,
    axis: int,
    block_size: int,
    name: str,
) -> ir.Value:
    codes, scales, points = operands
    inputs = [codes, read_as(model, scales, kind), *([points] if points is not None else [])]
    attributes = {"axis": axis, "block_size": block_size}
    return model.insert_before(
        anchor, "DequantizeLinear", inputs, attributes=dict(attributes), name=f"{name}/dequantize", dtype=kind
    )


def _scale_type(job: QuantizeJob) -> ir.DataType:
    return next(key for key, value in SCALE_TYPES.items() if value == job.format.scale_dtype)
