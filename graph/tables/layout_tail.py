"""The nodes behind a table's Gather that belong to its layout: a correction, a join of blocks, a cut of padding."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.integers import constant_integers
from onnx_tailor.graph.model import is_op
from onnx_tailor.graph.shapes import states_joined_shape
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


def layout_tail(value: ir.Value, ids: ir.Value, *, deep: bool, padded: int, block_size: int) -> Tail | str:
    """Follow the nodes of a layout behind `value`, the rows `ids` of `padded` columns, in blocks if `deep`.

    Returns the reason where the blocks of a row are not joined. What else changes the rows is not the layout's.
    """
    corrections = None
    if deep:
        add = only_user(value)
        gathers = [v.producer() for v in add.inputs if v is not None] if is_op(add, "Add") and add is not None else []
        gathers = [_behind_cast(g) for g in gathers]
        gather = next((g for g in gathers if g is not None and is_op(g, "Gather")), None)
        if add is not None and gather is not None:
            value, corrections = add.outputs[0], gather.inputs[0]
        join = only_user(value)
        if join is None or not is_op(join, "Reshape") or not states_joined_shape(join.inputs[1], ids, padded):
            return f"the blocks of its rows are not joined by a Reshape to [..., {padded}]"
        value = join.outputs[0]
    cut = only_user(value)
    if cut is not None and is_op(cut, "Slice") and len(cut.inputs) == 4:
        begin, end, axis = (constant_integers(v) for v in cut.inputs[1:4])
        # A cut of a block or more is somebody's own; padding ends in the last block.
        if begin == [0] and axis == [-1] and end is not None and padded - block_size < end[0] < padded:
            return Tail(cut.outputs[0], end[0], corrections)
    return Tail(value, padded, corrections)


def _behind_cast(node: ir.Node | None) -> ir.Node | None:
    """Return the node whose output a Cast widens, or `node` itself."""
    value = node.inputs[0] if node is not None and is_op(node, "Cast") else None
    return value.producer() if value is not None else node


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value`, or None."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
