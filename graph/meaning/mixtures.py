"""Mixtures of experts that one operator computes: com.microsoft MoE, with the experts' matrices stacked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.meaning.roles import Place, paths, place
from onnx_tailor.graph.model import MICROSOFT, TailorModel
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.view import Window

FC1, FC1_BIAS, FC2, FC2_BIAS, FC3 = 2, 3, 4, 5, 6
"""Inputs of MoE, by ONNX Runtime's documentation."""


@dataclass(frozen=True)
class Mixture:
    """One MoE node."""

    node: ir.Node
    place: Place

    @property
    def name(self) -> str:
        """The node's name, or its first weight's where it has none."""
        return self.node.name or self.names[0]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that a selector can match."""
        return ("expert",)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a glob pattern can match: node, weights, and the module of a torch.onnx export."""
        weights = [value.name or "" for value in (self.operand(FC1), self.operand(FC2)) if value is not None]
        found = [name for weight in weights for name in paths(self.node, weight).values() if name]
        return tuple(dict.fromkeys(found))

    @property
    def experts(self) -> tuple[Window, Window] | str:
        """FC1 [experts * rows, hidden] and FC2 [experts * hidden, rows], or the reason why they are not at hand."""
        found = []
        for index in (FC1, FC2):
            value = self.operand(index)
            tensor = WeightTensor.of_value(value) if value is not None else None
            if tensor is None or len(tensor.dims) != 3:
                return f"its input {index} is no stored stack of matrices"
            if tensor.view is None or not tensor.view.is_contiguous:
                return f"its weight {tensor.name} is computed by an earlier pass"
            found.append(tensor.view.reshape((math.prod(tensor.dims[:2]), tensor.dims[2])))
        return found[0], found[1]

    def operand(self, index: int) -> ir.Value | None:
        """Return an input of the node, None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None


def find_mixtures(model: TailorModel) -> list[Mixture]:
    """Return every MoE node."""
    found = []
    for node in model.nodes():
        if node.domain == MICROSOFT and node.op_type == "MoE":
            weight = node.inputs[FC1]
            layer = place(node, weight.name or "" if weight is not None else "")
            found.append(Mixture(node, Place(layer.layer, "expert", "structure")))
    return found
