"""Prove that an embedding table is the one that a quantized head was made of."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_tailor.graph.tables.block_table import BlockTable, tensor_of
from onnx_tailor.graph.tables.nbits_weight import Heads, form
from onnx_tailor.weights.compare import compare
from onnx_tailor.weights.rounding import BlockViews, Rounding, compare_rounding
from onnx_tailor.weights.view import Window


@dataclass(frozen=True)
class SameTable:
    """A quantized head and a float table, compared."""

    head: str
    """Name of the MatMulNBits."""
    table: BlockTable
    """What it reads."""
    rounding: Rounding

    @property
    def proof(self) -> str:
        """What was found, as a clause."""
        r = self.rounding
        row, column = r.where
        worst = f"the farthest {r.worst:.3g} steps away, at row {row}, column {column}"
        if r.same:
            beyond = f", {r.clipped} beyond their grid's end" if r.clipped else ""
            return f"all {r.elements} elements have the nearest code{beyond}; {worst}"
        return f"{r.misses} of {r.elements} elements have another code than the nearest; {worst}"


def same_float_table(heads: Heads, weight: Window) -> SameTable | None:
    """Return the quantized head of the float table `weight` [V, K], else the nearest miss; None without a candidate."""
    found: list[SameTable] = []
    for node, table in heads.by_shape.get(weight.shape, []):
        views = block_views(table)
        if views is not None:
            found.append(SameTable(node.name or "MatMulNBits", table, compare_rounding(weight, views)))
            if found[-1].rounding.same:
                return found[-1]
    return min(found, key=lambda each: each.rounding.misses, default=None)


def same_block_table(first: BlockTable, second: BlockTable) -> bool:
    """Whether two quantized tables of separate bytes hold equal codes, scales and zero points."""
    views = (block_views(first), block_views(second))
    if form(first) != form(second) or views[0] is None or views[1] is None:
        return False
    pairs = [(views[0].scales, views[1].scales), (views[0].codes, views[1].codes)]
    if views[0].zero_points is not None and views[1].zero_points is not None:
        pairs.append((views[0].zero_points, views[1].zero_points))
    return all(compare(_flat(one), _flat(other)).equal for one, other in pairs)


def block_views(table: BlockTable) -> BlockViews | None:
    """Return where the table's parts lie in their files; None where they are still to be computed."""
    shape = (table.rows, table.blocks)
    codes, scales = tensor_of(table.codes).view, tensor_of(table.scales).view
    points = None if table.zero_points is None else tensor_of(table.zero_points).view
    if codes is None or scales is None or (table.zero_points is not None and points is None):
        return None
    if points is not None:
        points = points.reshape((table.rows, points.size // table.rows))
    return BlockViews(codes, scales.reshape(shape), points, table.bits, table.columns)


def _flat(view: Window) -> Window:
    """Return the view as a matrix, which is what `compare` takes."""
    return view.reshape((view.shape[0], view.size // max(1, view.shape[0])))
