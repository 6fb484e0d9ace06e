"""What is in a file: table, head, whether they are tied and how that is known, and the projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_tailor.graph.candidates import Candidate, find_candidates
from onnx_tailor.graph.constants import Matrix
from onnx_tailor.graph.heads import NoHead, find_heads
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute
from onnx_tailor.graph.roles import place
from onnx_tailor.graph.size import measure
from onnx_tailor.graph.tables import find_tables, quantized_tables
from onnx_tailor.report import Size
from onnx_tailor.weights.compare import compare


@dataclass(frozen=True)
class FileInspection:
    """One ONNX file."""

    file: str
    size: Size
    tables: tuple[Mapping[str, Any], ...]
    heads: tuple[Mapping[str, Any], ...]
    tied: Mapping[str, str]
    """`state`: tied, equal, different or none; `proof`: how that is known."""
    projections: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Inspection:
    """One model file, or every one of a folder."""

    model: Path
    files: tuple[FileInspection, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as JSON values."""
        return {"model": str(self.model), "files": [asdict(file) for file in self.files]}


def inspect_model(model: TailorModel, file_bytes: int) -> FileInspection:
    """Describe a model. Only the proof of the tie reads weights."""
    tables = [{"node": t.node.name, **_weight(t.matrix), "bits": _bits(t.matrix)} for t in find_tables(model)] + [
        _quantized_table(node) for node in quantized_tables(model)
    ]
    heads = [
        {"output": head.output.name, "reason": head.reason}
        if isinstance(head, NoHead)
        else {"output": head.output.name, "node": head.projection.name, **_weight(head.projection.weight)}
        for head in find_heads(model)
    ]
    projections = [_projection(candidate) for candidate in find_candidates(model) if candidate.projections]
    projections += [_quantized_projection(n) for n in model.nodes() if n.op_type == "MatMulNBits"]
    return FileInspection(
        model.path.name, measure(model, file_bytes), tuple(tables), tuple(heads), _tied(model), tuple(projections)
    )


def _tied(model: TailorModel) -> dict[str, str]:
    for node in quantized_tables(model):
        for other in model.nodes():
            if other.op_type == "MatMulNBits" and _same_bytes(node, other):
                return {"state": "tied", "proof": "the quantized table and the head read the same bytes"}
    tables = find_tables(model)
    heads = [head for head in find_heads(model) if not isinstance(head, NoHead)]
    for head in heads:
        weight = head.projection.weight
        for table in (t for t in tables if t.matrix.view.shape == weight.view.shape):
            if table.matrix.view == weight.view:
                through = ", ".join(node.op_type for node in (*table.matrix.through, *weight.through))
                return {"state": "tied", "proof": f"one initializer{f', behind {through}' if through else ''}"}
            result = compare(table.matrix.view, weight.view)
            if result.equal_rounded:
                return {"state": "equal", "proof": f"two copies, all {result.elements} values compared"}
            return {
                "state": "different",
                "proof": f"{result.different} of {result.elements} values differ, by up to {result.largest:.6g}",
            }
    return {"state": "none", "proof": "no token table and head of one shape were found"}


def _same_bytes(gather: Any, matmul: Any) -> bool:
    values = []
    for node, index in ((gather, 0), (matmul, 1)):
        value = node.inputs[index]
        producer = value.producer()
        values.append(producer.inputs[0] if producer is not None and producer.op_type == "Reshape" else value)
    blobs = [getattr(value.const_value, "blob", None) for value in values]
    return blobs[0] is not None and blobs[0] == blobs[1]


def _weight(matrix: Matrix) -> dict[str, Any]:
    return {
        "weight": matrix.name,
        "shape": list(matrix.view.shape),
        "dtype": str(matrix.view.dtype),
        "bytes": matrix.view.nbytes,
    }


def _bits(matrix: Matrix) -> int:
    return int(matrix.view.dtype.bitwidth)


def _projection(candidate: Candidate) -> dict[str, Any]:
    where = candidate.place
    return {
        "node": candidate.name,
        **_weight(candidate.matrix),
        "bits": _bits(candidate.matrix),
        "layer": where.layer,
        "role": where.role,
        "recognised_by": where.recognised_by,
    }


def _quantized_projection(node: Any) -> dict[str, Any]:
    weight = node.inputs[1].name or ""
    where = place(node, weight)
    inputs = [value for value in node.inputs[1:4] if value is not None and value.const_value is not None]
    role = where.role
    if role is None and any(part in (node.name or "") + weight for part in ("lm_head", "embed")):
        role = "lm_head"
    return {
        "node": node.name,
        "weight": weight,
        "shape": [attribute(node, "N", 0), attribute(node, "K", 0)],
        "dtype": "UINT8",
        "bytes": sum(value.const_value.nbytes for value in inputs),
        "bits": attribute(node, "bits", 4),
        "layer": where.layer,
        "role": role,
        "recognised_by": where.recognised_by,
    }


def _quantized_table(node: Any) -> dict[str, Any]:
    assert node.domain == MICROSOFT
    tensors = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    return {
        "node": node.name,
        "weight": node.inputs[0].name,
        "shape": list(node.inputs[0].shape.numpy()) if node.inputs[0].shape is not None else [],
        "dtype": "UINT8",
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "bits": attribute(node, "bits", 4),
    }
