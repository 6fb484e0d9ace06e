"""The weights that are quantized already, as patterns can name them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from onnx_tailor.graph.constants import is_constant
from onnx_tailor.graph.integer_products import integer_weight
from onnx_tailor.graph.meaning.heads import head_nodes
from onnx_tailor.graph.meaning.roles import Place, find_places, paths
from onnx_tailor.graph.model import TailorModel, behind, is_contrib, is_op
from onnx_tailor.graph.tables.read_block_table import find_block_tables

_SUFFIX = re.compile(r"_q[248](_\w+)?$")
"""What the pass `quantize` appends to a weight's name."""


@dataclass(frozen=True)
class Quantized:
    """A node that reads a weight as codes."""

    node: ir.Node
    place: Place

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name or self.node.op_type

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that a selector can match."""
        return (self.place.role,) if self.place.role else ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names that a glob pattern can match: node, weight, and the module of a torch.onnx export."""
        weights = [value.name or "" for value in self.node.inputs[:2] if value is not None]
        found = [name for each in weights for name in paths(self.node, _SUFFIX.sub("", each)).values() if name]
        return tuple(dict.fromkeys(found))


def find_quantized(model: TailorModel) -> list[Quantized]:
    """Return what multiplies by codes, or gathers rows of them."""
    places = find_places(model, head_nodes(model))
    found = [Quantized(node, place) for node, place in places.items() if reads_codes(node)]
    gathers = [Quantized(each.node, Place(None, "embedding", "structure")) for each in find_block_tables(model)]
    experts = [
        Quantized(node, Place(None, "expert", "structure")) for node in model.nodes() if is_contrib(node, "QMoE")
    ]
    return [*found, *gathers, *experts]


def reads_codes(node: ir.Node) -> bool:
    """Whether a node multiplies by a weight that is stored as codes: itself, or behind DequantizeLinear."""
    codes = node.inputs[1] if is_contrib(node, "MatMulNBits") else integer_weight(node)
    if codes is not None:
        return is_constant(codes)
    if not is_op(node, "MatMul", "Gemm"):
        return False
    weight = behind(node.inputs[1], "Transpose")
    dequantize = weight.producer() if weight is not None else None
    standard = is_op(dequantize, "DequantizeLinear") or is_contrib(dequantize, "DequantizeLinear")
    return standard and dequantize is not None and is_constant(dequantize.inputs[0])
