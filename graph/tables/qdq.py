"""Weights stored as QDQ: integers behind a DequantizeLinear, with a scale for each block, row or tensor."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.model import TailorModel, attribute, is_op
from onnx_tailor.weights.tensors import WeightTensor


@dataclass(frozen=True)
class QdqWeight:
    """A stored weight of integers and the node that turns it into floats."""

    node: ir.Node
    """The DequantizeLinear."""
    weight: WeightTensor
    axis: int
    """The axis along which the blocks lie, or that of the scales; at least 0."""
    block_size: int
    """0 where a scale serves a whole row or the tensor."""
    reader: ir.Node | None
    """What reads the floats, behind a Transpose that stands between; None where several do."""

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return int(self.weight.dtype.bitwidth)

    @property
    def nbytes(self) -> int:
        """Bytes of integers, scales and zero points."""
        tensors = [value.const_value for value in self.node.inputs[1:] if value is not None]
        return self.weight.nbytes + sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def becomes_matmul_nbits(self) -> bool:
        """Whether ONNX Runtime fuses both into a MatMulNBits at load.

        Measured with 1.31: blocks along the first axis of [K, N], read by MatMul directly. All others, behind a
        Transpose or in front of a Gather, are turned into floats whole at every run.
        """
        direct = any(use.node is self.reader for use in self.node.outputs[0].uses())
        return self.block_size >= 16 and self.axis == 0 and direct and is_op(self.reader, "MatMul")


def find_qdq_weights(model: TailorModel) -> list[QdqWeight]:
    """Return every weight of at least two dimensions behind a DequantizeLinear."""
    found = []
    for node in model.nodes():
        if not is_op(node, "DequantizeLinear") or node.inputs[0] is None:
            continue
        weight = WeightTensor.of_value(node.inputs[0])
        if weight is None or len(weight.dims) < 2:
            continue
        axis = attribute(node, "axis", 1) % len(weight.dims)
        found.append(QdqWeight(node, weight, axis, attribute(node, "block_size", 0), _reader(node.outputs[0])))
    return found


def _reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1:
        return None
    node = uses[0].node
    return _reader(node.outputs[0]) if is_op(node, "Transpose", "Cast") else node
