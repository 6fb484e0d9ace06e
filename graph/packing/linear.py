"""Projections of either kind, float and quantized, as operands that can be divided along the output features."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.constants import is_constant
from onnx_tailor.graph.integers import dimensions
from onnx_tailor.graph.model import MICROSOFT, attribute, behind, is_op
from onnx_tailor.graph.projections import Projection, match_projection
from onnx_tailor.graph.tables.scales import stored_scales

_CAST = frozenset({"scales", "zero_points"})
"""Operands that may be stored in float16 behind a Cast."""
_NBITS_OPERANDS = {1: "weight", 2: "scales", 3: "zero_points", 5: "bias"}


@dataclass(frozen=True)
class Operand:
    """A stored input of a projection, or of a node behind it, that holds something for each output feature."""

    index: int
    """Which input of its node it is."""
    kind: str
    """`weight`, `scales`, `zero_points` or `bias`."""
    root: ir.Value
    """The initializer."""
    axis: int
    """The dimension of the initializer along which the output features lie."""
    through: tuple[ir.Node, ...] = ()
    """The Transpose and Cast nodes between the initializer and the reader."""

    @property
    def name(self) -> str:
        """The initializer's name."""
        return self.root.name or self.kind


@dataclass(frozen=True)
class Linear:
    """A node that multiplies activations by a stored matrix of `rows` output features."""

    node: ir.Node
    """MatMul, Gemm, FusedMatMul or MatMulNBits."""
    rows: int
    """N"""
    columns: int
    """K"""
    operands: tuple[Operand, ...]
    """The weight first."""

    @property
    def name(self) -> str:
        """The node's name, or its weight's where it has none."""
        return self.node.name or self.operands[0].name

    @property
    def output(self) -> ir.Value:
        """What the node yields, [..., N]."""
        return self.node.outputs[0]

    @property
    def rank(self) -> int | None:
        """Dimensions of the output: as many as the activation has."""
        known = dimensions(self.node.inputs[0])
        return 2 if is_op(self.node, "Gemm") else None if known is None else len(known)


def match_linear(node: ir.Node) -> Linear | str | None:
    """Return the projection that `node` is, the reason why a product with a constant is none, or None for others."""
    if node.domain == MICROSOFT and node.op_type == "MatMulNBits":
        return _quantized(node)
    found = match_projection(node)
    if isinstance(found, Projection):
        return _float(found)
    return found if found is not None and is_constant(node.inputs[1]) else None


def stored(value: ir.Value | None) -> ir.Value | None:
    """Return the initializer behind `value`, also behind Identity nodes; None where it is computed or an input."""
    value = behind(value, "Identity")
    if value is None or value.is_graph_input() or value.producer() is not None or value.const_value is None:
        return None
    return value


def _float(found: Projection) -> Linear | str:
    matrix, (rows, columns) = found.weight, found.weight.shape
    tensor = matrix.root.const_value
    as_stored = tensor is not None and getattr(tensor, "view", None) == matrix.view
    through = tuple(node for node in matrix.through if not is_op(node, "Identity"))
    operands = [Operand(1, "weight", matrix.root, 0 if as_stored else 1, through)]
    if found.bias is not None:
        bias = stored(found.bias)
        if bias is None:
            return "its bias is computed"
        operands.append(Operand(2, "bias", bias, 0))
    return Linear(found.node, rows, columns, tuple(operands))


def _quantized(node: ir.Node) -> Linear | str:
    rows, columns = attribute(node, "N", 0), attribute(node, "K", 0)
    operands = []
    for index, kind in _NBITS_OPERANDS.items():
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        root = stored(stored_scales(value) if kind in _CAST else value)
        if root is None:
            return f"its {kind} are computed"
        cast = value.producer() if kind in _CAST and is_op(value.producer(), "Cast") else None
        operands.append(Operand(index, kind, root, 0, () if cast is None else (cast,)))
    if attribute(node, "weight_prepacked", 0):
        return "its weight lies in the private layout of one kernel (weight_prepacked)"
    return Linear(node, rows, columns, tuple(operands))
