"""The pass `tie-embeddings`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.constants import Matrix, final_readers
from onnx_tailor.graph.meaning.heads import NoHead, QuantizedHead, find_heads
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute, is_op
from onnx_tailor.graph.projections import Projection, match_projection, wrap_gemm
from onnx_tailor.graph.shapes import LEAST_OPSET
from onnx_tailor.graph.tables.token_tables import Table, find_tables
from onnx_tailor.passes.base import Pass
from onnx_tailor.passes.tie_quantized import tie_quantized, unchanged
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
        heads = find_heads(model)
        results: list[Change | Skip] = []
        for head in heads:
            where = head.output.name or ""
            if isinstance(head, NoHead):
                results.append(Skip(where=where, reason=head.reason))
                continue
            if isinstance(head, QuantizedHead):
                continue
            if head.projection.node.graph is None:
                results.append(Skip(where=where, reason="its head is another output's, tied above"))
                continue
            projection = match_projection(head.projection.node)  # anew: a rewrite moves Gathers
            assert isinstance(projection, Projection)
            found = match(projection, find_tables(model), force=self.force, opset=model.opset)
            results.append(found if isinstance(found, Skip) else rewrite(model, found))
        quantized = list(tie_quantized(model, target))
        results += quantized or [unchanged(model, head.node) for head in heads if isinstance(head, QuantizedHead)]
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
    """Tables and a head that hold the same values, and which copy stays."""

    tables: tuple[Table, ...]
    projection: Projection
    kept: Matrix
    """The copy that all will read, as [V, K]: the one with most rows where a vocabulary is padded."""
    proof: str

    def saved(self, also: Iterable[ir.Node] = ()) -> int:
        """Return the bytes of the copies that go: those that nothing else reads, but for `also`, tied like these."""
        own = {self.projection.node, *(table.node for table in self.tables), *also}
        copies = {m.root: m.view.nbytes for m in (self.projection.weight, *(t.matrix for t in self.tables))}
        return sum(
            n for root, n in copies.items() if root is not self.kept.root and own.issuperset(final_readers(root))
        )


def match(projection: Projection, tables: list[Table], *, force: bool, opset: int = LEAST_OPSET) -> Tied | Skip:
    """Prove that the head's weight is a token table; decides and edits nothing."""
    head, where = projection.weight, projection.name
    fitting = [table for table in tables if table.matrix.shape == head.shape] or [
        table for table in tables if table.matrix.shape[1] == head.shape[1] and not force
    ]
    if not fitting:
        shapes = ", ".join(str(list(t.matrix.shape)) for t in tables) or "none"
        return Skip(where=where, reason=f"no token table has the head's shape {list(head.shape)} (tables: {shapes})")
    results = [(table, _compare(table.matrix, head)) for table in fitting]
    equal = [(table, result) for table, result in results if result.equal]
    rounded = [(table, result) for table, result in results if result.equal_rounded]
    first, result = (equal or rounded or [min(results, key=lambda each: each[1].largest)])[0]
    rows = {table.matrix.shape[0] for table in fitting} | {head.shape[0]}
    if len(rows) > 1 and opset < LEAST_OPSET:
        return Skip(where=where, reason=f"to cut off its padding needs opset {LEAST_OPSET}, and this is {opset}")
    if not result.equal_rounded and not force:
        return _different(where, first, head, result)
    # Copies that are exactly the head's values are one table, however many there are.
    readers = [t for t, _ in equal] if result.equal else [t for t in fitting if t.matrix.view == first.matrix.view]
    if all(_reads_plainly(projection, t.matrix) and not t.matrix.through for t in readers):
        return Skip(where=where, reason="it is tied already", details={"tied": True})
    return _tied(tuple(readers), projection, result)


def _compare(table: Matrix, head: Matrix) -> Comparison:
    """Compare the rows that both have."""
    rows = min(table.shape[0], head.shape[0])
    return compare(table.view.rows(0, rows), head.view.rows(0, rows))


def _different(where: str, table: Table, head: Matrix, result: Comparison) -> Skip:
    padded = "" if table.matrix.shape == head.shape else f" (of {head.shape[0]} and {table.matrix.shape[0]} rows)"
    return Skip(
        where=where,
        reason=f"its values differ from the table {table.matrix.name}{padded} in {result.different} of "
        f"{result.elements} elements, by up to {result.largest:.6g} at row {result.where[0]}, column {result.where[1]}",
        details={"largest_difference": result.largest, "row": result.where[0], "column": result.where[1]},
    )


def _tied(readers: tuple[Table, ...], projection: Projection, result: Comparison) -> Tied:
    head, matrices = projection.weight, [table.matrix for table in readers]
    forced = not result.equal_rounded
    if forced:
        proof = f"FORCED: {result.different} of {result.elements} values differ, by up to {result.largest:.6g}"
    elif result.equal:
        proof = "all values equal"
    else:
        proof = "all values equal after the cast that separates them"
    copies = matrices if forced else [*matrices, head]
    rows = max(m.shape[0] for m in copies)
    if any(m.shape[0] != rows for m in (*matrices, head)):
        proof += f"; {rows - min(m.shape[0] for m in (*matrices, head))} rows more in one are padding"
    longest = [m for m in copies if m.shape[0] == rows]
    widths = [m.view.dtype.itemsize for m in longest]
    # Equal values in two widths: the narrower copy loses nothing.
    width = min(widths) if result.equal else max(widths)
    fitting = [m for m in longest if m.view.dtype.itemsize == width]
    kept = next((m for m in fitting if m.view.is_contiguous), fitting[0])
    return Tied(readers, projection, kept, proof)


def _reads_plainly(projection: Projection, table: Matrix) -> bool:
    node = projection.node
    plain = is_op(node, "Gemm") or (node.domain == MICROSOFT and node.op_type == "FusedMatMul")
    as_stored = projection.weight.root is table.root and all(is_op(n, "Cast") for n in projection.weight.through)
    return plain and attribute(node, "transB", 0) == 1 and as_stored


def rewrite(model: TailorModel, tied: Tied) -> Change:
    """Make all read `tied.kept` as it lies, with no Transpose and no Reshape of it."""
    kept, projection, name = tied.kept, tied.projection, tied.projection.name
    before, gathers = kept.view.nbytes + tied.saved(), [table.node.name for table in tied.tables]
    value = _shared_value(model, kept)
    for table in tied.tables:
        _gather_from(model, table, value)
    read_as = projection.weight.dtype
    weight = value
    if value.dtype != read_as:
        weight = model.insert_before(
            projection.node, "Cast", [value], attributes={"to": int(read_as)}, name=f"{kept.name}/cast", dtype=read_as
        )
    model.replace(projection.output, _logits(model, projection, kept, weight))
    return Change(
        where=name,
        what=f"reads the table {value.name} ({tied.proof})",
        bytes_before=before,
        bytes_after=kept.view.nbytes,
        details={"table": value.name, "gather": gathers, "proof": tied.proof},
    )


def _logits(model: TailorModel, projection: Projection, kept: Matrix, weight: ir.Value) -> ir.Value:
    """Insert the head's product with `weight`, cut to the head's own vocabulary where the table has more rows."""
    node, rows, dtype, name = projection.node, projection.weight.shape[0], projection.weight.dtype, projection.name
    if kept.shape[0] == rows:
        return wrap_gemm(model, projection, weight, dtype)
    whole = wrap_gemm(model, replace(projection, weight=kept, bias=None), weight, dtype)
    bounds = [model.int64s([n], f"{name}/{what}") for what, n in (("begin", 0), ("end", rows), ("axis", -1))]
    logits = model.insert_before(node, "Slice", [whole, *bounds], name=f"{name}/vocabulary", dtype=dtype)
    if projection.bias is None:
        return logits
    return model.insert_before(node, "Add", [logits, projection.bias], name=f"{name}/bias", dtype=dtype)


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
