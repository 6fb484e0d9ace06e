"""Find the heads: the projections that yield the logits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.constants import FLOATS, is_constant
from onnx_tailor.graph.model import MICROSOFT, ONNX_DOMAINS, TailorModel, attribute, behind, is_op
from onnx_tailor.graph.projections import Projection, match_projection
from onnx_tailor.graph.tables.token_tables import find_tables

# What may stand between the head and the logits, besides arithmetic with a constant: soft-capping, casts, slices.
_TRANSPARENT = (
    "Cast",
    "Clip",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "LogSoftmax",
    "Reshape",
    "Slice",
    "Softmax",
    "Squeeze",
    "Tanh",
    "Unsqueeze",
)
_CHOOSE = ("ArgMax", "TopK")
"""What yields ids in the place of logits."""
_OF_ONE = (
    *("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"),
    *("Abs", "Clip", "Exp", "Neg", "Reciprocal", "Sigmoid", "Softplus", "Sqrt"),
)
"""Between a constant and its use."""
_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div", "Where")


@dataclass(frozen=True)
class Head:
    """The projection behind one output."""

    output: ir.Value
    """The graph output, as a rule `logits`."""
    projection: Projection


@dataclass(frozen=True)
class QuantizedHead:
    """A MatMulNBits behind one output."""

    output: ir.Value
    node: ir.Node


@dataclass(frozen=True)
class NoHead:
    """An output that no projection yields, and why."""

    output: ir.Value
    reason: str


def find_heads(model: TailorModel) -> list[Head | QuantizedHead | NoHead]:
    """Return the heads of the model, one for each output that may be logits.

    An output called `logits` is taken at its word and reported even where no head is found behind it. Without one,
    every float output is tried; those that lead to no projection are no candidates, and a projection with a row for
    each token of a table is preferred.
    """
    floats = [value for value in model.graph.outputs if value.dtype in FLOATS or value.dtype is None or _is_id(value)]
    named = [value for value in floats if "logits" in (value.name or "").lower()]
    # Keys and values of a cache are turned as well, so that a Transpose counts only where the name tells.
    seen_through = (*_TRANSPARENT, *_CHOOSE, *(("Transpose",) if named else ()))
    found = [head for value in named or floats for head in _behind(value, value, seen_through)]
    if named:
        return found
    proved = [head for head in found if not isinstance(head, NoHead) and not _is_state(head.output)]
    # Without the name, keys and values of a cache would pass for logits; a head has a row for each token.
    vocabularies = {table.matrix.shape[0] for table in find_tables(model)}
    fitting = [head for head in proved if _rows(head) in vocabularies]
    return [*(fitting or proved)]


def _is_state(value: ir.Value) -> bool:
    """Whether an output is keys or values of a cache, [batch, heads, tokens, size], whatever stands before it."""
    return (value.name or "").startswith(("present", "past")) or (value.shape is not None and len(value.shape) == 4)


def _is_id(value: ir.Value) -> bool:
    """Whether an output is what was chosen of the logits."""
    node = behind(value, "Cast", "Reshape", "Squeeze", "Identity")
    return node is not None and is_op(node.producer(), *_CHOOSE)


def _rows(head: Head | QuantizedHead) -> int:
    return attribute(head.node, "N", 0) if isinstance(head, QuantizedHead) else head.projection.weight.shape[0]


def head_nodes(model: TailorModel) -> list[ir.Node]:
    """Return the nodes that multiply by the heads' weights, float or quantized."""
    heads = find_heads(model)
    quantized = [head.node for head in heads if isinstance(head, QuantizedHead)]
    return [head.projection.node for head in heads if isinstance(head, Head)] + quantized


def _behind(
    output: ir.Value, value: ir.Value | None, seen_through: tuple[str, ...]
) -> list[Head | QuantizedHead | NoHead]:
    """Walk from the value `output` back to the projections that yield it: two where an If chooses between them."""
    while value is not None:
        node = value.producer()
        if node is None:
            return [NoHead(output, "it is not computed by a node")]
        if is_op(node, "If"):
            index = node.outputs.index(value)
            branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
            return [head for branch in branches for head in _behind(output, branch.outputs[index], seen_through)]
        if node.domain == MICROSOFT and node.op_type == "MatMulNBits":
            return [QuantizedHead(output, node)]
        matched = match_projection(node)
        if isinstance(matched, Projection):
            return [Head(output, matched)]
        if isinstance(matched, str):
            return [NoHead(output, f"{node.op_type} {node.name}: {matched}")]
        value = _carried(node, seen_through)
        if value is None:
            return [NoHead(output, f"{node.op_type} {node.name} stands between it and a projection")]
    return [NoHead(output, "it is not computed by a node")]


def _carried(node: ir.Node, seen_through: tuple[str, ...]) -> ir.Value | None:
    """Return the input that passes through `node`, or None where none does."""
    if node.domain not in ONNX_DOMAINS:
        return None
    if node.op_type in seen_through:
        return None if is_constant(node.inputs[0]) else node.inputs[0]
    if node.op_type in _WITH_CONSTANT:
        operands = node.inputs[1:] if node.op_type == "Where" else node.inputs
        variable = [value for value in operands if not _is_fixed(value)]
        return variable[0] if len(variable) == 1 else None
    return None


def _is_fixed(value: ir.Value | None) -> bool:
    """Whether `value` is a constant, or a function of one, as a scale that is stored as its logarithm."""
    return is_constant(behind(value, *_OF_ONE))
