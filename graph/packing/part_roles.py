"""What the parts of a packed projection are, told by what reads them and not by their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnx_tailor.graph.activations import ACTIVATIONS
from onnx_tailor.graph.constants import Matrix, constant_matrix, is_constant
from onnx_tailor.graph.model import MICROSOFT, is_contrib, is_op

_SETS = ({"q", "k", "v"}, {"k", "v"}, {"gate", "up"})
_FUSED = frozenset({"MultiHeadAttention", "GroupQueryAttention", "SparseAttention", "PagedAttention"})

# What may stand between a part and the attention: head layout, cache, rotary embedding, norms.
_LAYOUT = frozenset({"Reshape", "Transpose", "Slice", "Split", "Expand", "Unsqueeze", "Squeeze", "Flatten", "Tile"})
_ROTARY = frozenset({"RotaryEmbedding", "GemmaRotaryEmbedding", "Gather", "Neg", "Cast", "Identity", "Clip"})
_NORMS = frozenset({"SimplifiedLayerNormalization", "RMSNormalization", "LayerNormalization", "LpNormalization"})
_NORM_STEPS = frozenset({"Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal"})
_FIRST_INPUT = _LAYOUT | _ROTARY | _NORMS | _NORM_STEPS
_ANY_INPUT = frozenset({"Add", "Sub", "Mul", "Div", "Concat", "Where", "ScatterND", "ScatterElements"})

# What may stand between the scores and their Softmax, and between the Softmax and the product with the values.
_SCORES = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Cast", "Tanh", "Reshape", "Identity", "Clip", "Dropout"})

_ELEMENTWISE = ACTIVATIONS | {"Add", "Sub", "Mul", "Div", "Pow", "Cast", "Identity", "Clip", "Min", "Max", "Sqrt"}


def part_roles(parts: Sequence[Sequence[ir.Value]]) -> tuple[str, ...] | None:
    """Return the role of each part, `q`, `k`, `v` or `gate`, `up`; None where the graph does not tell all of them.

    `parts` holds, for each part, the values that carry it.
    """
    found = [{role for value in part for role in _attention_roles(value)} for part in parts]
    if all(len(roles) == 1 for roles in found):
        roles = tuple(next(iter(roles)) for roles in found)
        return roles if set(roles) in _SETS and len(set(roles)) == len(roles) else None
    if len(parts) == 2 and not any(found):
        return _gated(parts[0], parts[1])
    return None


def _attention_roles(value: ir.Value) -> Iterator[str]:
    """Yield the inputs of an attention, fused or written out, that `value` reaches."""
    for node, index in _reached(value, _ANY_INPUT, _FIRST_INPUT):
        if (node.domain == MICROSOFT and node.op_type in _FUSED) or is_op(node, "Attention"):
            yield from "qkv"[index : index + 1]
        elif is_op(node, "MatMul") or is_contrib(node, "FusedMatMul"):
            other = node.inputs[1 - index]
            if isinstance(constant_matrix(other), Matrix) or is_constant(other):
                continue
            if index == 1 and _comes_from_softmax(other):
                yield "v"
            elif any(is_op(reader, "Softmax") for reader, _ in _reached(node.outputs[0], _SCORES)):
                yield "qk"[index]


def _reached(
    value: ir.Value, any_input: frozenset[str], first_input: frozenset[str] = frozenset()
) -> Iterator[tuple[ir.Node, int]]:
    """Yield every (node, input) that reads `value`, also behind operators that carry one of their inputs on."""
    waiting, seen = [value], {value}
    while waiting:
        for use in waiting.pop().uses():
            yield use.node, use.idx
            if use.node.op_type in any_input or (use.idx == 0 and use.node.op_type in first_input):
                fresh = [output for output in use.node.outputs if output not in seen]
                waiting += fresh
                seen.update(fresh)


def _comes_from_softmax(value: ir.Value | None) -> bool:
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        node = current.producer() if current is not None else None
        if is_op(node, "Softmax"):
            return True
        if node is not None and node.op_type in _SCORES:
            fresh = [source for source in node.inputs if source not in seen]
            waiting += fresh
            seen.update(fresh)
    return False


def _gated(first: Sequence[ir.Value], second: Sequence[ir.Value]) -> tuple[str, ...] | None:
    """Tell gate from up: both meet in a Mul, and the gate alone has gone through an activation."""
    meeting = [
        node
        for value in first
        for node, _ in _reached(value, _ELEMENTWISE)
        if is_op(node, "Mul") and any(_made_of(source, second) is not None for source in node.inputs)
    ]
    for node in meeting:
        sides = [[_made_of(source, part) for source in node.inputs] for part in (first, second)]
        for left, right in ((0, 1), (1, 0)):
            activated = sides[0][left], sides[1][right]
            if activated == (True, False):
                return "gate", "up"
            if activated == (False, True):
                return "up", "gate"
    return None


def _made_of(value: ir.Value | None, part: Sequence[ir.Value]) -> bool | None:
    """Return whether an activation stands between `part` and `value`; None if `value` is made of anything else."""
    if value in part:
        return False
    if value is None or is_constant(value):
        return None
    node = value.producer()
    if node is None or node.op_type not in _ELEMENTWISE:
        return None
    activated = node.op_type in ACTIVATIONS
    for source in node.inputs:
        if source is None or is_constant(source):
            continue
        inner = _made_of(source, part)
        if inner is None:
            return None
        activated |= inner
    return activated
