"""Stacks of matrices [E, N, K] from which a router's choice gathers one for each token: how torch.onnx writes experts.

A stack is read like a table: row e is the matrix [N, K] of expert e. So its quantized form is a table's, and only the
matrices that were chosen are ever dequantized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.constants import FLOATS, Matrix
from onnx_tailor.graph.model import TailorModel, attribute, is_op
from onnx_tailor.graph.shapes import change_rank, joined_shape
from onnx_tailor.weights.tensors import WeightTensor

_CHOOSE = ("Gather", "GatherND")
_RESHAPE = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_ROUTED = ("TopK", "ArgMax")


@dataclass(frozen=True)
class Stack:
    """A Gather or GatherND of whole matrices for a MatMul."""

    node: ir.Node
    """The Gather or GatherND."""
    product: ir.Node
    """The MatMul that reads what it gathers."""
    matrix: Matrix
    """[E, N*K]"""
    tail: tuple[int, int]
    """[N, K]: what one row holds."""


def find_stacks(model: TailorModel) -> list[Stack]:
    """Return the stacks of float weights in the model."""
    found: dict[ir.Node, Stack] = {}
    for node in model.nodes():
        stack = _match(node)
        if stack is not None:
            found.setdefault(stack.node, stack)
    return list(found.values())


def chosen_stack(value: ir.Value | None) -> tuple[ir.Node, ir.Value] | None:
    """Return what chooses `value` from stored weights [E, ...] as the model runs, and those weights."""
    gather: ir.Node | None = None
    while value is not None:
        producer = value.producer()
        if producer is None:
            tensor = value.const_value
            return (gather, value) if gather and tensor is not None and len(tensor.shape) > 2 else None
        if not is_op(producer, *_CHOOSE, *_RESHAPE):
            return None
        gather = producer if is_op(producer, *_CHOOSE) else gather
        value = producer.inputs[0]
    return None


def chosen_for(value: ir.Value) -> ir.Node | None:
    """Return the MatMul that `value` is chosen for, through nodes that only reshape it."""
    readers = value.consumers()
    while len(readers) == 1:
        if is_op(readers[0], "MatMul"):
            return readers[0]
        readers = readers[0].outputs[0].consumers() if is_op(readers[0], *_RESHAPE) else ()
    return None


def is_routed(ids: ir.Value | None) -> bool:
    """Whether indices are a choice that the network makes, as a router does among experts."""
    while ids is not None and (node := ids.producer()) is not None:
        if is_op(node, *_ROUTED):
            return True
        if not is_op(node, *_CHOOSE, *_RESHAPE):
            return False
        ids = node.inputs[0]
    return False


def stack_rows(model: TailorModel, stack: Stack) -> ir.Value:
    """Return the indices of the rows that the stack's node gathers, as a Gather of a table takes them."""
    ids = stack.node.inputs[1]
    assert ids is not None
    if is_op(stack.node, "Gather"):
        return ids
    name = stack.matrix.name
    return change_rank(model, stack.node, "Squeeze", ids, [-1], f"{name}/rows", f"{name}/last_axis")


def as_matrices(model: TailorModel, stack: Stack, rows: ir.Value, ids: ir.Value) -> ir.Value:
    """Return gathered rows [..., N*K] as the matrices [..., N, K]."""
    name = f"{stack.matrix.name}/matrices"
    shape = joined_shape(model, stack.node, ids, stack.tail, name)
    return model.insert_before(stack.node, "Reshape", [rows, shape], name=name, dtype=rows.dtype)


def _match(product: ir.Node) -> Stack | None:
    if not is_op(product, "MatMul"):
        return None
    chosen = next(filter(None, map(chosen_stack, product.inputs[:2])), None)
    if chosen is None:
        return None
    node, root = chosen
    tensor = WeightTensor.of_value(root) if node.inputs[0] is root else None
    if tensor is None or tensor.dtype not in FLOATS or tensor.view is None or len(tensor.dims) != 3:
        return None
    view = tensor.view
    ids = node.inputs[1]
    plain = attribute(node, "axis", 0) == 0 if node.op_type == "Gather" else attribute(node, "batch_dims", 0) == 0
    single = node.op_type == "Gather" or (ids is not None and ids.shape is not None and ids.shape[-1] == 1)
    if not (plain and single and view.is_contiguous):
        return None
    experts, *tail = tensor.dims
    matrix = Matrix(root, view.reshape((experts, math.prod(tail))), tensor.dtype)
    return Stack(node, product, matrix, (tail[0], tail[1]))
