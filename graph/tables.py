"""Find the token tables: the constant matrices from which token ids gather rows."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.constants import Matrix, constant_matrix
from onnx_tailor.graph.model import TailorModel, attribute, is_op

_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_CARRY_IDS = ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Clip")
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
    nodes that only reshape or cast. Positions that are counted inside the graph are no tokens; where positions or
    token types are inputs themselves, their names tell.
    """
    tables = []
    for node in model.nodes():
        if not is_op(node, "Gather") or attribute(node, "axis", 0) != 0:
            continue
        ids = token_ids(node.inputs[1])
        matrix = constant_matrix(node.inputs[0])
        if ids is not None and isinstance(matrix, Matrix):
            tables.append(Table(node, matrix, ids))
    return tables


def token_ids(value: ir.Value | None) -> ir.Value | None:
    """Return the graph input from which the indices `value` come unchanged, or None if they are no token ids."""
    while value is not None:
        node = value.producer()
        if node is None:
            break
        if not is_op(node, *_CARRY_IDS):
            return None
        value = node.inputs[0]
    if value is None or not value.is_graph_input() or value.dtype not in _INTEGERS:
        return None
    name = (value.name or "").lower()
    return None if any(word in name for word in _NO_TOKENS) else value
