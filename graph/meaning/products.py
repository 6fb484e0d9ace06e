"""Products: every node that multiplies activations by stored weights, whatever the weights' form.

Wider than a projection, which can be rewritten: quantized weights, three dimensions and computed dequantization count
too, because they tell the same about the network's structure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.constants import is_constant
from onnx_tailor.graph.model import MICROSOFT, attribute, is_op
from onnx_tailor.graph.projections import Projection, match_projection
from onnx_tailor.graph.tables.stacks import chosen_stack

_MULTIPLY = ("MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "Einsum", "DynamicQuantizeMatMul")


@dataclass(frozen=True)
class Product:
    """One multiplication by stored weights."""

    node: ir.Node
    activation: ir.Value
    """The input that is no weight."""
    weight: str
    """The stored weight's name."""
    rows: int | None
    """N, the output features, where they can be told."""


def find_products(nodes: Iterable[ir.Node]) -> dict[ir.Node, Product]:
    """Return the products among `nodes`."""
    known: dict[ir.Value, str | None] = {}
    found = {}
    for node in nodes:
        product = _product(node, known)
        if product is not None:
            found[node] = product
    return found


def _product(node: ir.Node, known: dict[ir.Value, str | None]) -> Product | None:
    if node.domain == MICROSOFT and node.op_type in {"MatMulNBits", "MatMulBnb4"}:
        activation, weight = node.inputs[0], node.inputs[1]
        assert activation is not None
        name = stored_source(weight, known) or (weight.name if weight is not None else None) or ""
        return Product(node, activation, name, attribute(node, "N", 0) or None)
    matched = match_projection(node)
    if isinstance(matched, Projection):
        return Product(node, matched.activation, matched.weight.name, matched.weight.shape[0])
    if node.op_type not in _MULTIPLY or len(node.inputs) < 2:
        return None
    for index in (1, 0):
        chosen, value = chosen_stack(node.inputs[index]), node.inputs[1 - index]
        if chosen is not None and value is not None and is_op(node, "MatMul"):
            return Product(node, value, chosen[1].name or "", None)
    first, second = node.inputs[0], node.inputs[3 if node.op_type == "QLinearMatMul" else 1]
    weight_name = stored_source(second, known)
    if weight_name is None or first is None or second is None or stored_source(first, known) is not None:
        return None
    shape = second.shape
    last = shape[-1] if shape is not None and len(shape) > 1 else None
    if shape is not None and len(shape) < 2:
        return None
    return Product(node, first, weight_name, last if isinstance(last, int) else None)


def stored_source(value: ir.Value | None, known: dict[ir.Value, str | None]) -> str | None:
    """Return the name of the first initializer behind `value` if nothing but initializers is behind it.

    `known` keeps what was found of other values, for the next call.
    """
    if value is None:
        return None
    queue, begun = [value], set[ir.Value]()
    while queue:
        each = queue[-1]
        producer = each.producer()
        inputs = [] if producer is None else [source for source in producer.inputs if source is not None]
        # A loop cannot happen in a graph, but a file may lie.
        if each in known:
            queue.pop()
        elif producer is None or is_op(producer, "Constant"):
            known[each] = (each.name or "") if is_constant(each) else None
        elif not inputs or any(attr.type == ir.AttributeType.GRAPH for attr in producer.attributes.values()):
            known[each] = None
        elif each not in begun:
            begun.add(each)
            queue += [source for source in inputs if source not in known and source not in begun]
        else:
            names = [known.get(source) for source in inputs]
            known[each] = None if None in names else names[0]
    return known[value]
