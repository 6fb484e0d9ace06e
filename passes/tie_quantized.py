"""The part of `tie-embeddings` for heads that are quantized already: the table reads the head's codes.

Before: Gather(E, ids) or GatherBlockQuantized(own copy) ... MatMulNBits(h, B, scales, zero_points)
After:  the rows gathered from B, scales and zero_points in the target's layout; E is dropped
The head stays bit for bit. A float table's rows move by the quantizer's rounding, which the head's have done already.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.tables.block_table import BlockTable, gather, tensor_of
from onnx_tailor.graph.tables.nbits_weight import Heads, blob_of, nbits_table
from onnx_tailor.graph.tables.read_block_table import FoundTable, find_block_tables
from onnx_tailor.graph.tables.same_table import SameTable, same_block_table, same_float_table
from onnx_tailor.graph.tables.token_tables import Table, find_tables
from onnx_tailor.graph.tables.typed_table import TypedTable, head_of, typed_tables
from onnx_tailor.passes.reshape_dim import rewrite
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import Target
from onnx_tailor.weights.tensors import WeightTensor


def tie_quantized(model: TailorModel, target: Target) -> Iterator[Change | Skip]:
    """Let every token table whose values are a quantized head's read that head's codes, by proof."""
    heads = Heads.of(model)
    for table in find_tables(model):
        found = same_float_table(heads, table.matrix.view)
        if found is not None:
            yield _tie(model, target, table, found) if found.rounding.same else _miss(table, found)
    for typed in typed_tables(model):
        head = head_of(heads, typed)
        if head is not None:
            yield _tie_typed(model, target, typed, *head)
    for other in find_block_tables(model):
        if isinstance(other, FoundTable) and other.layout != "broken":
            yield from _share(model, other, heads)


def unchanged(model: TailorModel, head: ir.Node) -> Skip:
    """Say why nothing was done for a quantized head: it is tied already, or no table holds its values."""
    table, where = nbits_table(head), head.name or "MatMulNBits"
    own = None if isinstance(table, str) else blob_of(table.codes)
    for found in find_block_tables(model):
        if isinstance(found, FoundTable) and own is not None and blob_of(found.table.codes) == own:
            if found.layout == "broken":
                return Skip(where=where, reason=f"its table {found.node.name} is broken; reshape-dim mends it")
            return Skip(where=where, reason="it is tied already", details={"tied": True})
    tensor = None if isinstance(table, str) else WeightTensor.of_value(table.codes)
    if tensor is not None and tensor.view is None:
        why = "its codes are not written yet: let tie-embeddings stand before quantize"
    else:
        why = "no token table holds its values" if own is not None else f"no token table can read it: {table}"
    return Skip(where=where, reason=f"it is quantized already, and {why}")


def _miss(table: Table, found: SameTable) -> Skip:
    reason = f"the quantized head {found.head} is no rounding of its table {table.matrix.name}: {found.proof}"
    return Skip(where=table.node.name or table.matrix.name, reason=reason)


def _tie(model: TailorModel, target: Target, table: Table, found: SameTable) -> Change:
    node, matrix = table.node, table.matrix
    name, ids, layout = model.retire(node) or f"{matrix.name}/gather", node.inputs[1], target.layout(found.table.form)
    assert ids is not None
    rows = gather(model, node, found.table, ids, layout, matrix.dtype, name)
    model.replace(node.outputs[0], rows)
    return Change(
        where=name,
        what=f"reads the codes of the head {found.head} ({found.proof})",
        bytes_before=matrix.view.nbytes + _bytes(found.table),
        bytes_after=_bytes(found.table),
        details={"layout": layout, "worst_steps": found.rounding.worst, "clipped": found.rounding.clipped},
    )


def _tie_typed(model: TailorModel, target: Target, typed: TypedTable, head: ir.Node, table: BlockTable) -> Change:
    node, dtype = typed.node, typed.node.outputs[0].dtype or table.read_as
    name, ids, layout = model.retire(node) or f"{table.name}/gather", node.inputs[1], target.layout(table.form)
    assert ids is not None
    model.replace(node.outputs[0], gather(model, node, table, ids, layout, dtype, name))
    return Change(
        where=name,
        what=f"reads the codes of the head {head.name} (its own, {typed.dtype}, are equal)",
        bytes_before=typed.nbytes + _bytes(table),
        bytes_after=_bytes(table),
        details={"layout": layout},
    )


def _share(model: TailorModel, found: FoundTable, heads: Heads) -> Iterator[Change]:
    """Let a quantized table with bytes of its own read the head's, if those are equal."""
    if blob_of(found.table.codes) is None or heads.readers_of(found.table.codes):
        return
    for node, table in heads.like(found.table):
        if same_block_table(found.table, table):
            where = found.node.name or ""
            rewrite(model, found, found.layout, table)
            yield Change(
                where=where,
                what=f"reads the codes of the head {node.name} (equal bytes)",
                bytes_before=_bytes(found.table) + _bytes(table),
                bytes_after=_bytes(table),
                details={"layout": found.layout},
            )
            return


def _bytes(table: BlockTable) -> int:
    operands = (table.codes, table.scales, table.zero_points)
    return sum(tensor_of(value).nbytes for value in operands if value is not None)
