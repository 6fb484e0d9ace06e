"""Part of the pass `quantize`: MatMulNBits and GatherBlockQuantized in the place of what reads a float weight."""

from __future__ import annotations

import onnx_ir as ir

from onnx_tailor.graph.constants import FLOATS
from onnx_tailor.graph.meaning.candidates import Candidate
from onnx_tailor.graph.model import MICROSOFT, TailorModel
from onnx_tailor.graph.projections import Projection, match_projection, scaled
from onnx_tailor.graph.tables.block_table import BlockTable, gather
from onnx_tailor.graph.tables.scales import read_as
from onnx_tailor.graph.tables.stacks import Stack, as_matrices, stack_rows
from onnx_tailor.graph.tables.token_tables import Table
from onnx_tailor.quant import BlockFormat
from onnx_tailor.report import Change
from onnx_tailor.targets import Target
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.tensors import Blob, WeightTensor

SCALE_TYPES = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}


def rewrite(
    model: TailorModel, target: Target, candidate: Candidate, job: QuantizeJob, accuracy_level: int | None
) -> Change:
    """Put the quantized weight in the place of the float one, for all its readers."""
    name, table = candidate.name, _table(model, candidate, job)
    for projection in candidate.projections:
        current = match_projection(projection.node)  # what it reads may have been rewritten since it was found
        assert isinstance(current, Projection)
        _matmul(model, current, table, accuracy_level)
    gathers: tuple[Table | Stack, ...] = (*candidate.tables, *candidate.stacks)
    layout = target.layout(table.form) if gathers else None
    for reader in gathers:
        assert layout is not None
        ids = stack_rows(model, reader) if isinstance(reader, Stack) else reader.node.inputs[1]
        assert ids is not None
        gathered = model.retire(reader.node) or f"{candidate.matrix.name}/gather"
        rows = gather(model, reader.node, table, ids, layout, reader.matrix.dtype, gathered)
        result = as_matrices(model, reader, rows, ids) if isinstance(reader, Stack) else rows
        model.replace(reader.node.outputs[0], result)
    return describe(name, candidate, job, _objection(target, job.format), stored_bytes(job), layout)


def describe(name: str, candidate: Candidate, job: QuantizeJob, remark: str, nbytes: int, layout: str | None) -> Change:
    """Return what a report says of a weight, called `name` before, that is stored in `nbytes`."""
    fmt, where = job.format, candidate.place
    return Change(
        where=name,
        what=_what(job) + remark,
        bytes_before=job.view.nbytes,
        bytes_after=nbytes,
        details={
            "weight": candidate.matrix.name,
            "shape": list(candidate.shape),
            "bits": fmt.bits,
            "block_size": fmt.block_size,
            "symmetric": fmt.symmetric,
            "zero_points": None if fmt.symmetric else "float" if fmt.float_points else "integer",
            "method": job.label,
            "role": where.role,
            "layer": where.layer,
            "layout": layout,
            "readers": len(candidate.readers),
        },
    )


def _objection(target: Target, fmt: BlockFormat) -> str:
    """Say that the target multiplies by no such weight, or slowly; "" where it does well."""
    if target.lacks("MatMulNBits", fmt.bits):
        form = f"{fmt.bits} bits"
    elif fmt.float_points and target.lacks_float_points(fmt.bits):
        form = f"{fmt.bits} bits with float zero points"
    elif fmt.float_points and target.float_points_cost:
        return f"; but with float zero points {target.float_points_cost}"
    else:
        return ""
    return f"; but MatMulNBits has no kernel of {form} on {target.name}, so it runs slowly there, or not at all"


def widest(candidate: Candidate) -> ir.DataType:
    """Return the widest type in which a reader takes the weight: that of the scales, so that both read the same."""
    gathers: tuple[Table | Stack, ...] = (*candidate.tables, *candidate.stacks)
    read_as = [p.weight.dtype for p in candidate.projections] + [each.matrix.dtype for each in gathers]
    return max(read_as, key=lambda dtype: dtype.itemsize)


def _table(model: TailorModel, candidate: Candidate, job: QuantizeJob) -> BlockTable:
    fmt, (rows, columns), name = job.format, job.view.shape, candidate.matrix.name
    blocks = fmt.blocks(columns)
    scale_type = next(key for key, value in SCALE_TYPES.items() if value == fmt.scale_dtype)
    read_type = widest(candidate)
    codes = WeightTensor(Blob(job, "codes"), ir.DataType.UINT8, (rows, blocks, fmt.blob_bytes))
    scales = WeightTensor(Blob(job, "scales"), scale_type, (rows, blocks))
    points = None
    if not fmt.symmetric:
        packed = (ir.DataType.UINT8, (rows, fmt.zero_point_row_bytes(columns)))
        dtype, shape = (scale_type, (rows, blocks)) if fmt.float_points else packed
        tensor = WeightTensor(Blob(job, "zero_points"), dtype, shape)
        points = model.initializer(tensor, f"{name}_zero_points")
    return BlockTable(
        name,
        model.initializer(codes, f"{name}_q{fmt.bits}"),
        model.initializer(scales, f"{name}_scales"),
        points,
        rows,
        columns,
        fmt.bits,
        fmt.block_size,
        read_type,
    )


def _matmul(model: TailorModel, projection: Projection, table: BlockTable, accuracy_level: int | None) -> None:
    node, dtype, name = projection.node, projection.weight.dtype, projection.name
    kind = table.read_as
    model.retire(node)
    attributes: dict[str, int | float | str | list[int]] = {
        "K": table.columns,
        "N": table.rows,
        "bits": table.bits,
        "block_size": table.block_size,
    }
    if accuracy_level is not None:
        attributes["accuracy_level"] = accuracy_level
    activation = projection.activation
    if kind != dtype:
        activation = model.insert_before(
            node, "Cast", [activation], attributes={"to": int(kind)}, name=f"{name}/widen", dtype=kind
        )
    points = table.zero_points
    if points is not None and points.dtype in FLOATS:
        points = read_as(model, points, kind)
    inputs: list[ir.Value | None] = [
        activation,
        table.codes,
        read_as(model, table.scales, kind),
        points,
    ]
    bias = projection.bias
    inside = bias if projection.alpha == 1.0 else None  # what the operator adds would be scaled as well
    if inside is not None:
        if kind != dtype:
            inside = model.insert_before(
                node, "Cast", [inside], attributes={"to": int(kind)}, name=f"{name}/bias", dtype=kind
            )
        inputs += [None, inside]
    while inputs[-1] is None:
        inputs.pop()
    result = model.insert_before(
        node, "MatMulNBits", inputs, domain=MICROSOFT, attributes=dict(attributes), name=name, dtype=kind
    )
    made = result.producer()
    assert made is not None
    made.metadata_props.update(node.metadata_props)
    if kind != dtype:
        result = model.insert_before(
            node, "Cast", [result], attributes={"to": int(dtype)}, name=f"{name}/narrow", dtype=dtype
        )
    result = scaled(model, projection, result, name)
    if bias is not None and inside is None:
        result = model.insert_before(node, "Add", [result, bias], name=f"{name}/bias", dtype=dtype)
    model.replace(projection.output, result)


def _what(job: QuantizeJob) -> str:
    """Return the setting as a report tells it."""
    fmt = job.format
    kind = "symmetric" if fmt.symmetric else "float zero points" if fmt.float_points else "asymmetric"
    method = f"{job.label} ({job.remark})" if job.remark else job.label
    narrow = ", float16 scales" if job.view.dtype == ir.DataType.FLOAT and fmt.scale_dtype == "float16" else ""
    return f"{fmt.bits} bits, block {fmt.block_size}, {kind}{narrow}, {method}"


def stored_bytes(job: QuantizeJob) -> int:
    """Return the bytes of codes, scales and zero points."""
    return sum(size for name, size in job.outputs.items() if name != "corrections")
