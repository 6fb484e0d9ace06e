"""Part of the pass `quantize`: the multiplications by stored weights that it cannot rewrite, each with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_tailor.graph.constants import FLOATS, is_constant
from onnx_tailor.graph.meaning.products import stored_source
from onnx_tailor.graph.meaning.quantized import reads_codes
from onnx_tailor.graph.model import TailorModel, is_contrib, is_op
from onnx_tailor.graph.projections import Projection, match_projection
from onnx_tailor.graph.tables.stacks import chosen_stack, find_stacks
from onnx_tailor.report import Skip

_FUSED = ("Attention", "DecoderAttention", "EmbedLayerNormalization", "LongformerAttention", "PackedAttention")
_RECURRENT = ("GRU", "LSTM", "RNN")
_LARGE = 4096
"""Bytes from which on a weight in an unusual place is worth a word."""


def unusable(model: TailorModel) -> Iterator[Skip]:
    """Yield the products with a float weight that are no projection, and how many are quantized already."""
    quantized = sum(reads_codes(node) for node in model.nodes())
    if quantized:
        several = f"{quantized} projections are quantized already and stay as they are"
        one = "a projection is quantized already and stays as it is"
        yield Skip(where=model.path.name, reason=several if quantized > 1 else one)
    stacks = {stack.product for stack in find_stacks(model)}
    large = {
        name: value
        for graph in model.graphs()
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= _LARGE and value.const_value.dtype in FLOATS
    }
    known: dict[ir.Value, str | None] = {}
    for node in list(model.nodes()):
        reason = None if node in stacks else _reason(node, large, known)
        if reason is not None:
            yield Skip(where=node.name or node.op_type, reason=reason)


def _reason(node: ir.Node, large: dict[str, ir.Value], known: dict[ir.Value, str | None]) -> str | None:
    """Return why a node that multiplies by a float weight cannot be rewritten; None for projections and other nodes."""
    chosen = next(filter(None, map(chosen_stack, node.inputs[:2])), None) if is_op(node, "MatMul") else None
    if chosen is not None and chosen[1].dtype in FLOATS:
        return f"{chosen[0].name} chooses its weights from {chosen[1].name} in a way that no rule knows"
    if is_contrib(node, *_FUSED) or is_op(node, *_RECURRENT):
        own = next((large[value.name or ""] for value in node.inputs if value and (value.name or "") in large), None)
        return None if own is None else f"{node.op_type} reads {own.name} itself, and takes no codes"
    found = match_projection(node)
    if isinstance(found, Projection) or len(node.inputs) < 2:
        return None
    if isinstance(found, str) and is_constant(node.inputs[1]):
        return found
    fed = next((value for value in node.inputs[:2] if _is_replaceable(value)), None)
    if fed is not None:
        return f"its weight {fed.name} is an input of the graph too, so that a caller may give another"
    if found is None and not is_op(node, "Conv"):
        return None
    first, second = (large.get(stored_source(value, known) or "") for value in node.inputs[:2])
    if is_op(node, "Conv") and second is not None:
        return f"a convolution by {second.name}, which no operator takes in blocks of few bits"
    if not isinstance(found, str) or (first is None) == (second is None):
        return None
    if second is not None:
        return f"{found}, of the stored {second.name}; fold constants when you export"
    assert first is not None
    return f"its weight {first.name} is its first operand, and quantized operators take it as the second"


def _is_replaceable(value: ir.Value | None) -> bool:
    """Whether a value is a large weight that the graph lists among its inputs, as files of IR version 3 do."""
    if value is None or not value.is_graph_input() or value.const_value is None:
        return False
    return value.const_value.nbytes >= _LARGE and value.const_value.dtype in FLOATS
