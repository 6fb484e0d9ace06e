"""The nodes behind a table's Gather that belong to its layout: a correction, a join of blocks, a cut of padding."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.model import is_op
from onnx_tailor.graph.tables.block_table import BlockTable, correction_job
from onnx_tailor.weights.tensors import Blob, WeightTensor
from onnx_tailor.weights.view import as_bytes


@dataclass(frozen=True)
class Tail:
    """Where the rows are whole, and what was met on the way there."""

    output: ir.Value
    """[..., K]"""
    columns: int
    """K, without padding."""
    corrections: ir.Value | None
    """The table whose rows are added."""

    def corrects(self, table: BlockTable) -> bool:
        """Whether the added rows are the corrections of this table: computed by the same job, or equal bytes."""
        tensor = WeightTensor.of_value(self.corrections) if self.corrections is not None else None
        if tensor is None or tensor.dtype != table.scales.dtype or tensor.size != table.rows * table.blocks:
            return False
        job = correction_job(table)
        if job is None:
            return False
        if tensor.view is None:
            return tensor.blob == Blob(job, "corrections")
        stored = as_bytes(tensor.view)
        for tile in job.tiles():
            for _, offset, piece in job.compute(tile, frozenset({"corrections"})):
                raw = piece.reshape(-1).view("uint8")
                if (stored.rows(offset, offset + len(raw)).read() != raw).any():
                    return False
        return True


def layout_tail(value: ir.Value, *, deep: bool, padded: int) -> Tail:
    """Follow the nodes of a layout behind `value`, whose rows have `padded` columns, in blocks if `deep`."""
    corrections = None
    if deep:
        add = only_user(value)
        gathers = [v.producer() for v in add.inputs if v is not None] if is_op(add, "Add") and add is not None else []
        gathers = [_behind_cast(g) for g in gathers]
        gather = next((g for g in gathers if g is not None and is_op(g, "Gather")), None)
        if add is not None and gather is not None:
            value, corrections = add.outputs[0], gather.inputs[0]
        join = only_user(value)
        if join is not None and is_op(join, "Reshape"):
            value = join.outputs[0]
    cut = only_user(value)
    if cut is not None and is_op(cut, "Slice") and len(cut.inputs) == 4:
        bounds = [_integers(v) for v in cut.inputs[1:4]]
        if bounds[0] == [0] and bounds[2] == [-1] and bounds[1] is not None and 0 < bounds[1][0] < padded:
            return Tail(cut.outputs[0], bounds[1][0], corrections)
    return Tail(value, padded, corrections)


def _behind_cast(node: ir.Node | None) -> ir.Node | None:
    """Return the node whose output a Cast widens, or `node` itself."""
    value = node.inputs[0] if node is not None and is_op(node, "Cast") else None
    return value.producer() if value is not None else node


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value`, or None."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _integers(value: ir.Value | None) -> list[int] | None:
    tensor = value.const_value if value is not None else None
    return None if tensor is None or tensor.size > 8 else [int(n) for n in tensor.numpy().reshape(-1)]
