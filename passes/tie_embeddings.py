"""The pass `tie-embeddings`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.constants import Matrix
from onnx_tailor.graph.heads import NoHead, QuantizedHead, find_heads
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute, is_op
from onnx_tailor.graph.projections import Projection, wrap_gemm
from onnx_tailor.graph.tables import Table, find_tables
from onnx_tailor.passes.base import Pass
from onnx_tailor.passes.tie_quantized import tie_quantized
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import Target
from onnx_tailor.weights.compare import Comparison, compare
from onnx_tailor.weights.tensors import WeightTensor


@dataclass(frozen=True, kw_only=True)
class TieEmbeddings(Pass):
    """Let the embedding and the output head read one initializer, after proving that they hold the same values.

    Before: Gather(E, ids) ... MatMul(h, W)                 E: [V, K]   W: [K, V], W == E.T
    After:  Gather(E, ids) ... Gemm(h, E, transB=1)
    Exact: bitwise on weights; the logits change by the order of additions alone. Saves V*K*itemsize bytes.
    """

    name: ClassVar[str] = "tie-embeddings"

    required: bool = False
    """Fail, with exit status 1, when the table and the head cannot be tied."""
    force: bool = False
    """Tie them even if their values differ: the head then uses the table's values."""

    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        """Tie each head with the token table of its shape.

        Raises:
            ModelError: `required` is set and no head is tied when the pass ends.
        """
        tables, heads = find_tables(model), find_heads(model)
        results: list[Change | Skip] = []
        for head in heads:
            where = head.output.name or ""
            if isinstance(head, NoHead):
                results.append(Skip(where=where, reason=head.reason))
                continue
            if isinstance(head, QuantizedHead):
                results.append(Skip(where=where, reason=f"its head {head.node.name} is quantized already"))
                continue
            found = match(head.projection, tables, force=self.force)
            results.append(found if isinstance(found, Skip) else rewrite(model, found))
        results.extend(tie_quantized(model, target))
        if not heads:
            results.append(Skip(where=model.path.name, reason="no output of the model comes from a projection"))
        model.sweep()
        done = any(isinstance(r, Change) or r.details.get("tied") for r in results)
        if self.required and not done:
            raise ModelError(
                f"{model.path}: the embedding and the head cannot be tied, which the recipe requires: "
                + "; ".join(f"{r.where}: {r.reason}" for r in results if isinstance(r, Skip))
            )
        yield from results


@dataclass(frozen=True)
class Tied:
    """A table and a head that hold the same values, and which copy stays."""

    tables: tuple[Table, ...]
    projection: Projection
    kept: Matrix
    """The copy that both will read, as [V, K]."""
    proof: str
    saved: int
    """Bytes of the copy that goes."""


def match(projection: Projection, tables: list[Table], *, force: bool) -> Tied | Skip:
    """Prove that the head's weight is a token table; decides and edits nothing."""
    head, where = projection.weight, projection.name
    fitting = [table for table in tables if table.matrix.view.shape == head.view.shape]
    if not fitting:
        shapes = ", ".join(str(list(t.matrix.view.shape)) for t in tables) or "none"
        wanted = list(head.view.shape)
        return Skip(where=where, reason=f"no token table has the head's shape {wanted} (tables: {shapes})")
    nearest: tuple[Table, Comparison] | None = None
    for table in fitting:
        result = compare(table.matrix.view, head.view)
        if result.equal_rounded or force:
            readers = tuple(t for t in fitting if t.matrix.root is table.matrix.root)
            if _reads_plainly(projection, table.matrix) and all(not t.matrix.through for t in readers):
                return Skip(where=where, reason="it is tied already", details={"tied": True})
            return _tied(readers, projection, result)
        if nearest is None or result.largest < nearest[1].largest:
            nearest = (table, result)
    assert nearest is not None
    table, result = nearest
    return Skip(
        where=where,
        reason=f"its values differ from the table {table.matrix.name} in {result.different} of {result.elements} "
        f"elements, by up to {result.largest:.6g} at row {result.where[0]}, column {result.where[1]}",
        details={"largest_difference": result.largest, "row": result.where[0], "column": result.where[1]},
    )


def _tied(readers: tuple[Table, ...], projection: Projection, result: Comparison) -> Tied:
    table, head = readers[0].matrix, projection.weight
    if result.equal:
        proof = "all values equal"
        # Equal values in two widths: the narrower copy loses nothing.
        width = min(table.view.dtype.itemsize, head.view.dtype.itemsize)
    elif result.equal_rounded:
        proof = "all values equal after the cast that separates them"
        width = max(table.view.dtype.itemsize, head.view.dtype.itemsize)
    else:
        proof = f"FORCED: {result.different} of {result.elements} values differ, by up to {result.largest:.6g}"
        width = table.view.dtype.itemsize
    fitting = [m for m in (table, head) if m.view.dtype.itemsize == width]
    kept = next((m for m in fitting if m.view.is_contiguous), fitting[0])
    saved = 0 if table.root is head.root else table.view.nbytes + head.view.nbytes - kept.view.nbytes
    return Tied(readers, projection, table if not (result.equal or result.equal_rounded) else kept, proof, saved)


def _reads_plainly(projection: Projection, table: Matrix) -> bool:
    node = projection.node
    plain = is_op(node, "Gemm") or (node.domain == MICROSOFT and node.op_type == "FusedMatMul")
    return plain and attribute(node, "transB", 0) == 1 and node.inputs[1] is table.root


def rewrite(model: TailorModel, tied: Tied) -> Change:
    """Make both read `tied.kept` as it lies, with no Transpose and no Reshape of it."""
    kept, projection, name = tied.kept, tied.projection, tied.projection.name
    gathers = [table.node.name for table in tied.tables]
    value = _shared_value(model, kept)
    for table in tied.tables:
        _gather_from(model, table, value)
    read_as = projection.weight.dtype
    weight = value
    if value.dtype != read_as:
        weight = model.insert_before(
            projection.node, "Cast", [value], attributes={"to": int(read_as)}, name=f"{kept.name}/cast", dtype=read_as
        )
    model.replace(projection.output, wrap_gemm(model, projection, weight, read_as))
    return Change(
        where=name,
        what=f"reads the table {value.name} ({tied.proof})",
        bytes_before=kept.view.nbytes + tied.saved,
        bytes_after=kept.view.nbytes,
        details={"table": value.name, "gather": gathers, "proof": tied.proof},
    )


def _shared_value(model: TailorModel, kept: Matrix) -> ir.Value:
    tensor = kept.root.const_value
    if isinstance(tensor, WeightTensor) and tensor.view == kept.view and kept.root.graph is model.graph:
        return kept.root
    return model.initializer(WeightTensor.of_view(kept.view), f"{kept.name}_tied")


def _gather_from(model: TailorModel, table: Table, value: ir.Value) -> None:
    """Let a Gather read `value`; a cast in front of it moves behind it, where it costs a few rows only."""
    node, dtype = table.node, table.matrix.dtype
    node.replace_input_with(0, value)
    if value.dtype == dtype:
        return
    output = node.outputs[0]
    name = model.retire(node) or f"{value.name}/gather"
    rows = model.insert_before(node, "Gather", list(node.inputs), attributes={"axis": 0}, name=name, dtype=value.dtype)
    cast = model.insert_before(node, "Cast", [rows], attributes={"to": int(dtype)}, name=f"{name}/cast", dtype=dtype)
    model.replace(output, cast)
