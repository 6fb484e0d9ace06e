"""What is in a file: table, head, whether they are tied and how that is known, and the projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from onnx_tailor.graph.constants import Matrix
from onnx_tailor.graph.file import receipt
from onnx_tailor.graph.file.size import measure
from onnx_tailor.graph.integers import dimensions
from onnx_tailor.graph.meaning.candidates import Candidate, expert_place, find_candidates
from onnx_tailor.graph.meaning.heads import Head, NoHead, QuantizedHead, find_heads, head_nodes
from onnx_tailor.graph.meaning.roles import Place, find_places, place
from onnx_tailor.graph.model import TailorModel, attribute, is_contrib
from onnx_tailor.graph.tables.nbits_weight import Heads, stored_operands
from onnx_tailor.graph.tables.qdq import QdqWeight, find_qdq_weights
from onnx_tailor.graph.tables.read_block_table import FoundTable, Unread, find_block_tables
from onnx_tailor.graph.tables.same_table import same_float_table
from onnx_tailor.graph.tables.stacks import chosen_for, is_routed
from onnx_tailor.graph.tables.token_tables import find_tables
from onnx_tailor.graph.tables.typed_table import head_of, typed_tables
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
    receipts: tuple[Mapping[str, Any], ...] = ()
    """What onnx-tailor noted in the file when it made it, the oldest run first."""


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
    block_tables = find_block_tables(model)
    tables = [{"node": t.node.name, **_weight(t.matrix), "bits": _bits(t.matrix)} for t in find_tables(model)] + [
        _quantized_table(found) for found in block_tables if not _is_stack(found)
    ]
    places = find_places(model, head_nodes(model))
    heads = [_head(head) for head in find_heads(model)]
    candidates = find_candidates(model, places)
    projections = [_projection(candidate) for candidate in candidates if candidate.projections or candidate.stacks]
    projections += [_quantized_stack(found) for found in block_tables if _is_stack(found)]
    projections += [_quantized_projection(n, places[n]) for n in model.nodes() if is_contrib(n, "MatMulNBits")]
    projections += [_qdq_projection(weight) for weight in find_qdq_weights(model)]
    return FileInspection(
        model.path.name,
        measure([model], file_bytes),
        tuple(tables),
        tuple(heads),
        _tied(model),
        tuple(projections),
        tuple(receipt.read(model)),
    )


def _tied(model: TailorModel) -> dict[str, str]:
    quantized = Heads.of(model)
    for found in find_block_tables(model):
        if isinstance(found, FoundTable) and quantized.readers_of(found.table.codes):
            return {"state": "tied", "proof": f"the quantized table ({found.layout}) and the head read the same bytes"}
    for typed in typed_tables(model):
        if head_of(quantized, typed) is not None:
            return {"state": "equal", "proof": f"two copies, all codes equal, the table's as {typed.dtype}"}
    tables = find_tables(model)
    for table in tables:
        same = same_float_table(quantized, table.matrix.view)
        if same is not None and same.rounding.same:
            return {"state": "equal", "proof": f"the quantized head is the float table: {same.proof}"}
    heads = [head for head in find_heads(model) if isinstance(head, Head)]
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
        "shape": list(candidate.shape),
        "bits": _bits(candidate.matrix),
        "layer": where.layer,
        "role": where.role,
        "recognised_by": where.recognised_by,
    }


def _head(head: Head | QuantizedHead | NoHead) -> dict[str, Any]:
    if isinstance(head, NoHead):
        return {"output": head.output.name, "reason": head.reason}
    if isinstance(head, QuantizedHead):
        return {"output": head.output.name, "node": head.node.name, **_quantized_weight(head.node)}
    return {"output": head.output.name, "node": head.projection.name, **_weight(head.projection.weight)}


def _quantized_projection(node: Any, where: Place) -> dict[str, Any]:
    return {
        "node": node.name,
        **_quantized_weight(node),
        "layer": where.layer,
        "role": where.role,
        "recognised_by": where.recognised_by,
    }


def _quantized_weight(node: Any) -> dict[str, Any]:
    tensors = [tensor for value in stored_operands(node) if (tensor := value.const_value) is not None]
    return {
        "weight": node.inputs[1].name or "",
        "shape": [attribute(node, "N", 0), attribute(node, "K", 0)],
        "dtype": "UINT8",
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "bits": attribute(node, "bits", 4),
    }


def _qdq_projection(found: QdqWeight) -> dict[str, Any]:
    reader = found.reader or found.node
    where = place(reader, found.weight.name or "")
    return {
        "node": reader.name,
        "weight": found.weight.name,
        "shape": list(found.weight.dims),
        "dtype": str(found.weight.dtype),
        "bytes": found.nbytes,
        "bits": found.bits,
        "form": "qdq",
        "block_size": found.block_size,
        "layer": where.layer,
        "role": where.role,
        "recognised_by": where.recognised_by,
    }


def _is_stack(found: FoundTable | Unread) -> TypeGuard[FoundTable]:
    """Whether rows of it are what a router chooses: the matrices of experts."""
    return isinstance(found, FoundTable) and is_routed(found.ids)


def _quantized_stack(found: FoundTable) -> dict[str, Any]:
    product = chosen_for(found.output)
    where = expert_place(place(product or found.node, found.table.codes.name or ""))
    own = {"layer": where.layer, "role": where.role, "recognised_by": where.recognised_by}
    return {**_quantized_table(found), "node": (product or found.node).name, **own}


def _quantized_table(found: FoundTable | Unread) -> dict[str, Any]:
    if isinstance(found, Unread):
        data = found.node.inputs[0]
        tensors = [value.const_value for value in found.node.inputs if value is not None]
        return {
            "node": found.node.name,
            "weight": data.name if data is not None else "(missing)",
            "shape": dimensions(data) or [],
            "dtype": str(data.dtype) if data is not None else "",
            "bytes": sum(tensor.nbytes for tensor in tensors if tensor is not None),
            "bits": attribute(found.node, "bits", 4),
            "unclear": found.reason,
        }
    table = found.table
    operands = [value.const_value for value in (table.codes, table.scales, table.zero_points) if value is not None]
    return {
        "node": found.node.name,
        "weight": table.codes.name,
        "shape": [table.rows, table.columns],
        "dtype": "UINT8",
        "bytes": sum(tensor.nbytes for tensor in operands if tensor is not None),
        "bits": table.bits,
        "layout": found.layout,
    }
