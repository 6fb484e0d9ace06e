"""The attentions of a model, and which products feed them and read from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.meaning.dataflow import Flow
from onnx_tailor.graph.model import is_contrib, is_op

_FUSED = frozenset(
    {
        "Attention",
        "DecoderMaskedMultiHeadAttention",
        "GroupQueryAttention",
        "MultiHeadAttention",
        "PackedMultiHeadAttention",
        "PagedAttention",
        "SparseAttention",
    }
)
"""Operators whose first three inputs are query, key and value; where key is missing, query holds all three."""
_MULTIPLY = ("MatMul", "FusedMatMul", "TransposeMatMul", "Einsum")


@dataclass(frozen=True)
class Attention:
    """One attention: softmax(query key) value."""

    roles: dict[ir.Node, str]
    """q, k, v, qkv, kv and o, by product."""
    query: ir.Value
    output: ir.Value


def find_attentions(flow: Flow) -> list[Attention]:
    """Return the attentions in the order of the file."""
    found = []
    for node in flow.nodes:
        if is_op(node, *_FUSED) or is_contrib(node, *_FUSED):
            operands = [node.inputs[i] if i < len(node.inputs) else None for i in range(3)]
            if is_contrib(node, "Attention"):
                operands = [node.inputs[0], None, None]  # its weights are its own inputs
            if operands[0] is not None:
                found.append(_attention(flow, operands, node.outputs[0]))
        elif is_op(node, "Softmax"):
            found += [_attention(flow, list(operands), output) for operands, output in _written_out(flow, node)]
    return found


def _written_out(flow: Flow, softmax: ir.Node) -> Iterator[tuple[tuple[ir.Value | None, ...], ir.Value]]:
    """Yield (query, key, value) and the output of MatMul, Softmax and MatMul."""
    assert softmax.inputs[0] is not None
    scores = flow.before(softmax.inputs[0], stop=_multiplies).stopped
    mixed = flow.after(softmax.outputs[0], stop=lambda node, index: _multiplies(node) and index == 0).stopped
    if scores and mixed:
        # The nearest ones: another product of two activations further up adds to the scores, as relative positions do.
        score, mix = scores[0], mixed[0]
        query = score.inputs[0]
        assert query is not None
        yield (query, score.inputs[1], mix.inputs[1]), mix.outputs[0]


def _multiplies(node: ir.Node) -> bool:
    """Whether a node multiplies two values, which an Einsum of one alone does not."""
    return node.op_type in _MULTIPLY and len(node.inputs) > 1


def _attention(flow: Flow, operands: list[ir.Value | None], output: ir.Value) -> Attention:
    sides = [_feeding(flow, value) if value is not None else set() for value in operands]
    query, key, value = sides
    roles: dict[ir.Node, str] = {}
    packed = operands[1] is None
    for node in query | key | value:
        inside = "".join(name for name, side in zip("qkv", sides, strict=True) if node in side)
        roles[node] = "qkv" if packed or inside in {"qkv", "qk", "qv"} else inside
    reading = flow.after(output)
    nodes = {product.node for product in reading.products}
    # Two readers in one graph are no output projection: the attention has none, or its heads go separate ways.
    if len(nodes) == len({node.graph for node in nodes}):
        roles.update(dict.fromkeys(nodes - roles.keys(), "o"))
    assert operands[0] is not None
    first = next((flow.products[node].activation for node in query), operands[0])
    return Attention(roles, first, output)


def _feeding(flow: Flow, value: ir.Value) -> set[ir.Node]:
    """Return the products that yield an operand; none where it comes from the residual stream as it is.

    A single product beside gathered rows is a projection that is rotated by stored sines and cosines.
    """
    reached = flow.before(value)
    found = {product.node for product in reached.products}
    return set() if not reached.complete or (reached.roots and len(found) > 1) else found
