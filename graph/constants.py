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
    through: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None:
        if not is_op(node, "Transpose", "Cast", "Identity"):
            return f"it is computed by {node.op_type}"
        through.insert(0, node)
        value = node.inputs[0]
    found = _stored_matrix(value)
    for node in through:
        if isinstance(found, str):
            break
        found = _behind(found, node)
    return found


def _stored_matrix(value: ir.Value | None) -> Matrix | str:
    """Return the matrix that an initializer is, as it is stored."""
    if value is None:
        return "it is missing"
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


def _behind(inner: Matrix, node: ir.Node) -> Matrix | str:
    """Return the matrix as it is read behind a Transpose, Cast or Identity."""
    view, dtype = inner.view, inner.dtype
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        order = (1, 0) if perm is None else tuple(perm.value)
        view = view.transpose() if order == (1, 0) else view
    elif node.op_type == "Cast":
        dtype = ir.DataType(int(node.attributes["to"].value))
        if dtype not in FLOATS:
            return f"it is cast to {dtype}"
        if inner.dtype not in {inner.root.dtype, ir.DataType.FLOAT, dtype}:
            return f"it is rounded to {inner.dtype} before it is cast to {dtype}"
    return Matrix(inner.root, view, dtype, (*inner.through, node))


def final_readers(root: ir.Value) -> list[ir.Node]:
    """Return the nodes that read the values of an initializer, as it is or behind Transpose, Cast and Identity nodes.

    What reads its shape alone is content with a constant.
    """
    found: dict[ir.Node, None] = {}
    queue = [root]
    while queue:
        for node in queue.pop().consumers():
            if is_op(node, "Transpose", "Cast", "Identity"):
                queue += node.outputs
            elif not is_op(node, "Shape", "Size"):
                found[node] = None
    return list(found)


def constant_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape of an initializer, also behind Identity nodes, which optimum puts before equal ones."""
    root = behind(value, "Identity")
    return None if root is None or root.const_value is None else tuple(root.const_value.shape.numpy())


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer or the output of a Constant node."""
    if value is None or value.is_graph_input():
        return False
    return value.is_initializer() or is_op(value.producer(), "Constant")
