"""Find the token tables: the constant matrices from which token ids gather rows."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.constants import Matrix, constant_matrix, is_constant
from onnx_tailor.graph.model import TailorModel, attribute, is_op
from onnx_tailor.graph.tables.plain_table import read_plain

_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_CARRY = {
    **dict.fromkeys(("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Clip", "Slice"), slice(0, 1)),
    **dict.fromkeys(("Expand", "Tile", "Transpose", "Gather"), slice(0, 1)),
    "Where": slice(1, 3),
    **dict.fromkeys(("Max", "Min", "Concat", "Add", "Sub"), slice(None)),
    "ConstantOfShape": slice(0),
}
"""Operators whose output is made of the ids that these inputs hold."""
_EMBED = ("Add", "Mul", "Cast", "Reshape", "Identity")
"""What stands between a gathered row and the sum of embeddings."""
_NO_TOKENS = ("position", "type_id", "segment", "mask")


@dataclass(frozen=True)
class Table:
    """A Gather of token rows."""

    node: ir.Node
    """The Gather."""
    matrix: Matrix
    """The table, [V, K]."""
    ids: ir.Value
    """The graph input that the token ids come from."""


def find_tables(model: TailorModel) -> list[Table]:
    """Return the token tables of the model.

    A table is recognised by its shape and by its indices, which come from an integer input of the graph through
    nodes that only reshape, cast or choose. Positions that are counted inside the graph are no tokens. Where positions
    or token types are inputs themselves, their names tell, or else that their rows are added to those of a larger
    table with indices of its own.
    """
    tables = []
    scales = {plain.scales for node in model.nodes() if (plain := read_plain(node)) is not None}
    for node in model.nodes():
        if not is_op(node, "Gather") or attribute(node, "axis", 0) != 0:
            continue
        ids = token_ids(node.inputs[1])
        matrix = constant_matrix(node.inputs[0])
        if ids is not None and isinstance(matrix, Matrix) and matrix.root not in scales:
            tables.append(Table(node, matrix, ids))
    if len({table.ids for table in tables}) < 2:
        return tables
    sums = [(table, _sums(table.node)) for table in tables]
    return [table for table, own in sums if not any(_outranks(other, table) and own & theirs for other, theirs in sums)]


def _outranks(other: Table, table: Table) -> bool:
    return other.ids is not table.ids and other.matrix.shape[0] > table.matrix.shape[0]


def token_ids(value: ir.Value | None) -> ir.Value | None:
    """Return the graph input from which the indices `value` come, moved by constants at most; None for no token ids."""
    found = _sources(value)
    source = next(iter(found)) if found is not None and len(found) == 1 else None
    if source is None or source.dtype not in _INTEGERS:
        return None
    name = (source.name or "").lower()
    return None if any(word in name for word in _NO_TOKENS) else source


def _sources(value: ir.Value | None) -> set[ir.Value] | None:
    """Return the graph inputs of which `value` is made; None where anything else is in it."""
    found: set[ir.Value] = set()
    seen: set[ir.Value | None] = set()
    queue = [value]
    while queue:
        each = queue.pop()
        if each in seen or each is None or is_constant(each):
            continue
        seen.add(each)
        node = each.producer()
        if node is not None and is_op(node, *_CARRY):
            queue += node.inputs[_CARRY[node.op_type]]
        elif node is None and each.is_graph_input():
            found.add(each)
        else:
            return None
    return found


def _sums(gather: ir.Node) -> set[ir.Node]:
    """Return the additions that the gathered rows enter before anything is computed from them."""
    found: set[ir.Node] = set()
    queue = list(gather.outputs)
    while queue:
        for node in queue.pop().consumers():
            if is_op(node, *_EMBED) and node not in found:
                found.add(node)
                queue += node.outputs
    return {node for node in found if node.op_type == "Add"}
