"""Integers that a graph states as constants: sizes, bounds, axes, shapes."""

from __future__ import annotations

import onnx_ir as ir

from onnx_tailor.graph.model import behind, is_op

_LARGEST = 4096
"""More elements are no sizes or axes but data."""


def constant_integers(value: ir.Value | None) -> list[int] | None:
    """Return the integers of an initializer or a Constant node, a scalar as one; None where `value` is computed."""
    value = behind(value, "Identity")
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    node = value.producer()
    if node is not None and is_op(node, "Constant"):
        stated = next(iter(node.attributes.values()))
        if stated.type in {ir.AttributeType.INT, ir.AttributeType.INTS}:
            return [stated.value] if stated.type == ir.AttributeType.INT else [int(n) for n in stated.value]
        tensor = stated.value if stated.type == ir.AttributeType.TENSOR else None
    elif node is not None:
        return None
    if tensor is None or tensor.size > _LARGEST or not tensor.dtype.is_integer():
        return None
    return [int(n) for n in tensor.numpy().reshape(-1)]


def dimensions(value: ir.Value | None) -> list[int | None] | None:
    """Return the shape of `value` with None for what only a run tells; None where even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return [n if isinstance(n, int) else None for n in value.shape]
