"""Scales that are stored in float16 though the operators read float32: a Cast of the initializer stands between.

ONNX Runtime computes the Cast of an initializer once, at load (measured with 1.31: the products are the same bit for
bit, and the float32 scales lie in its own memory in the place of clean pages of the file).
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_tailor.graph.model import TailorModel, behind, is_op


def stored_scales(value: ir.Value | None) -> ir.Value | None:
    """Return the value that a Cast widens, or `value` itself where none does."""
    return behind(value, "Cast")


def read_type(value: ir.Value | None) -> ir.DataType | None:
    """Return the type of `value`, also of a Cast's output that the file does not declare."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and is_op(node, "Cast"):
        return ir.DataType(node.attributes["to"].as_int())
    return value.dtype


def read_as(model: TailorModel, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Return `value`, an initializer, in the type `dtype`: itself, or behind the one Cast that all its readers share.

    The Cast stands first in the graph of the initializer, so that readers anywhere, also in subgraphs, see it.
    """
    if value.dtype == dtype:
        return value
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    for use in value.uses():
        if use.node.graph is graph and is_op(use.node, "Cast") and read_type(use.node.outputs[0]) == dtype:
            graph.remove(use.node)  # one that the file had need not stand first
            graph.insert_before(graph[0], use.node)
            return use.node.outputs[0]
    name = f"{value.name}/{dtype.name.lower()}"
    return model.insert_before(
        graph[0], "Cast", [value], attributes={"to": int(dtype)}, name=name, dtype=dtype, shape=value.shape
    )
