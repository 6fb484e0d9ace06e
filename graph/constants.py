"""Constant matrices as a node reads them, seen through the nodes that stand between it and the initializer."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.model import behind, is_op
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.view import Window

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True)
class Matrix:
    """A float initializer of two dimensions, as some node reads it."""

    root: ir.Value
    """The initializer."""
    view: Window
    """Its elements in the orientation in which the node reads them."""
    dtype: ir.DataType
    """The type in which the node reads it, after the casts in between."""
    through: tuple[ir.Node, ...] = ()
    """The nodes between the initializer and the reader: Transpose, Cast, Identity."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as read."""
        rows, columns = self.view.shape
        return rows, columns

    @property
    def name(self) -> str:
        """The initializer's name."""
        return self.root.name or "(no name)"

    def transpose(self) -> Matrix:
        """Return the same matrix read the other way."""
        return Matrix(self.root, self.view.transpose(), self.dtype, self.through)


def constant_matrix(value: ir.Value | None) -> Matrix | str:
    """Follow `value` to the initializer it comes from, without computing anything.

    Returns:
        The matrix, or the reason why `value` is none: a clause such as "it is computed by Softmax".
    """
    if value is None:
        return "it is missing"
    producer = value.producer()
    if producer is not None:
        return _through(producer)
    if value.is_graph_input() or not value.is_initializer():
        return "it is an input of the graph"
    tensor = value.const_value
    if tensor is None or len(tensor.shape) != 2:
        shape = list(tensor.shape.numpy()) if tensor is not None else None
        stack = ", a stack of matrices, which no operator takes quantized" if shape and len(shape) == 3 else ""
        return f"it has the shape {shape or '(unknown)'}{stack}"
    if tensor.dtype not in FLOATS:
        return f"it is {tensor.dtype}"
    if not isinstance(tensor, WeightTensor):
        return f"it has only {tensor.nbytes} bytes"
    view = tensor.view
    if view is None:
        return "its values are computed by an earlier pass"
    return Matrix(value, view, tensor.dtype)


def _through(node: ir.Node) -> Matrix | str:
    if not is_op(node, "Transpose", "Cast", "Identity"):
        return f"it is computed by {node.op_type}"
    inner = constant_matrix(node.inputs[0])
    if isinstance(inner, str):
        return inner
    through = (*inner.through, node)
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        order = (1, 0) if perm is None else tuple(perm.value)
        view = inner.view.transpose() if order == (1, 0) else inner.view
        return Matrix(inner.root, view, inner.dtype, through)
    if node.op_type == "Cast":
        dtype = ir.DataType(int(node.attributes["to"].value))
        if dtype not in FLOATS:
            return f"it is cast to {dtype}"
        return Matrix(inner.root, inner.view, dtype, through)
    return Matrix(inner.root, inner.view, inner.dtype, through)


def constant_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape of an initializer, also behind Identity nodes, which optimum puts before equal ones."""
    root = behind(value, "Identity")
    return None if root is None or root.const_value is None else tuple(root.const_value.shape.numpy())


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer or the output of a Constant node."""
    if value is None or value.is_graph_input():
        return False
    return value.is_initializer() or is_op(value.producer(), "Constant")
