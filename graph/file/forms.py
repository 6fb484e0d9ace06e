"""Refuse a node that its own operator does not allow: too few inputs or outputs, attributes missing or of another type.

A pass reads the inputs of a MatMul by their index and the `axis` of a Gather as a number without asking first.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.model import MICROSOFT, ONNX_DOMAINS
from onnx_tailor.graph.walk import nodes_in

_MICROSOFT: dict[str, tuple[int, tuple[str, ...]]] = {
    "MatMulNBits": (3, ("K", "N", "bits", "block_size", "accuracy_level")),
    "GatherBlockQuantized": (1, ("bits", "block_size", "gather_axis", "quantize_axis")),
    "FusedMatMul": (2, ("transA", "transB", "transBatchA", "transBatchB")),
    "MatMulBnb4": (2, ("K", "N")),
    "MoE": (3, ()),
    "QMoE": (3, ("expert_weight_bits", "block_size")),
    **dict.fromkeys(("Attention", "PackedMultiHeadAttention"), (1, ("num_heads",))),
    **dict.fromkeys(
        (
            "DecoderMaskedMultiHeadAttention",
            "GroupQueryAttention",
            "MultiHeadAttention",
            "PagedAttention",
            "SparseAttention",
        ),
        (1, ("num_heads", "kv_num_heads")),
    ),
}
"""Fewest inputs, and attributes that are integers, of operators that passes look into and onnx has no schema of."""

_HIDDEN = {"If": 0, "Loop": 1, "Scan": 0}
"""Operators with graphs inside, and how many of a graph's outputs are none of the node's: a Loop's condition."""


def require_forms(graph: ir.Graph | ir.Function, opsets: dict[str, int], path: Path) -> None:
    """Check every node of a graph and of the graphs inside against the schema of its operator, where that is known.

    Raises:
        ModelError: one does not fit.
    """
    for node in nodes_in(graph):
        _require_form(node, opsets, path)


def _require_form(node: ir.Node, opsets: dict[str, int], path: Path) -> None:
    if node.domain == MICROSOFT:
        inputs, names = _MICROSOFT.get(node.op_type, (0, ()))
        outputs, types, required = 1, dict.fromkeys(names, ir.AttributeType.INT), frozenset[str]()
        filled: Iterable[int] = range(inputs)
    elif node.domain in ONNX_DOMAINS:
        version = next(opsets[domain] for domain in ONNX_DOMAINS if domain in opsets)
        inputs, filled, outputs, types, required = _schema(node.op_type, version)
    else:
        return
    where = f"{path}: the {node.op_type} node {node.name or '(no name)'}"
    if len(node.inputs) < inputs or len(node.outputs) < outputs:
        raise ModelError(
            f"{where} has {len(node.inputs)} inputs and {len(node.outputs)} outputs, fewer than it must have"
        )
    if any(node.inputs[index] is None for index in filled):
        raise ModelError(f"{where} lacks an input that it must have")
    for name, attribute in node.attributes.items():
        if name in types and attribute.type != types[name]:
            raise ModelError(f"{where} has the attribute {name} of the type {attribute.type.name}")
    if missing := required - node.attributes.keys():
        raise ModelError(f"{where} lacks the attribute {min(missing)}")
    _require_outputs(node, where)


def _require_outputs(node: ir.Node, where: str) -> None:
    """Check that the graphs inside a node yield what the node says it does."""
    hidden = _HIDDEN.get(node.op_type, 0)
    for name, attribute in node.attributes.items() if node.op_type in _HIDDEN else ():
        if attribute.type == ir.AttributeType.GRAPH and len(attribute.as_graph().outputs) - hidden < len(node.outputs):
            raise ModelError(f"{where} yields more values than the graph in its {name}")


_Schema = tuple[int, tuple[int, ...], int, dict[str, ir.AttributeType], frozenset[str]]


@cache
def _schema(op_type: str, version: int) -> _Schema:
    """Return fewest inputs, which of them must be there, fewest outputs, types of attributes, and those required."""
    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except (onnx.defs.SchemaError, TypeError, OverflowError):  # an operator or a version that this onnx does not know
        if not onnx.defs.has(op_type, ""):
            return 0, (), 0, {}, frozenset()
        schema = onnx.defs.get_schema(op_type, "")
    types = {name: ir.AttributeType[str(each.type).rpartition(".")[2]] for name, each in schema.attributes.items()}
    required = frozenset(name for name, each in schema.attributes.items() if each.required)
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    # A Loop needs two inputs, and may leave both empty.
    filled = tuple(i for i, each in enumerate(schema.inputs[: schema.min_input]) if each.option != optional)
    return schema.min_input, filled, schema.min_output, types, required
