"""The operators that multiply by a matrix of integers, but for MatMulNBits, whose blocks have rooms of their own."""

from __future__ import annotations

import onnx_ir as ir

from onnx_tailor.graph.model import is_contrib, is_op

_STANDARD = {"MatMulInteger": 1, "QLinearMatMul": 3}
_CONTRIB = {"DynamicQuantizeMatMul": 1, "MatMulBnb4": 1, "MatMulIntegerToFloat": 1}
"""Operators by the input that is the matrix."""


def integer_weight(node: ir.Node) -> ir.Value | None:
    """Return the matrix of codes that a node multiplies by; None for any other node."""
    index = None
    if is_op(node, *_STANDARD):
        index = _STANDARD[node.op_type]
    elif is_contrib(node, *_CONTRIB):
        index = _CONTRIB[node.op_type]
    return node.inputs[index] if index is not None and index < len(node.inputs) else None
