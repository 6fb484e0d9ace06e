"""Count a model's bytes and weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnx_tailor.graph.constants import FLOATS
from onnx_tailor.graph.integer_products import integer_weight
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute, is_op
from onnx_tailor.graph.tables.plain_table import read_plain
from onnx_tailor.graph.tables.scales import stored_scales
from onnx_tailor.report import Size
from onnx_tailor.weights.tensors import Blob, WeightTensor

_QUANTIZED = ("MatMulNBits", "GatherBlockQuantized", "QMoE")
_EXPERT_CODES, _EXPERT_SCALES = (2, 5, 8), (3, 6, 9, 11, 12, 13)
"""Inputs of QMoE."""


def weight_tensors(model: TailorModel) -> Iterator[ir.Value]:
    """Iterate over the initializers of all graphs, in the order in which nodes first read them."""
    seen: set[ir.Value] = set()
    for node in model.nodes():
        for value in node.inputs:
            if value is not None and value.is_initializer() and value not in seen:
                seen.add(value)
                yield value
    for graph in model.graphs():
        yield from (value for value in graph.initializers.values() if value not in seen)


def measure(models: Sequence[TailorModel], file_bytes: int, same: Mapping[Blob, Blob] | None = None) -> Size:
    """Return the size of models whose files have `file_bytes` together.

    Tensors on the same bytes count once, and so do those on blobs that `same` leads to one.
    """
    counted: dict[object, tuple[int, int]] = {}
    for model in models:
        roles = _quantized_operands(model)
        for value in weight_tensors(model):
            tensor = value.const_value
            if tensor is None:
                continue
            key: Blob | ir.Value = value
            if isinstance(tensor, WeightTensor):
                key = (same or {}).get(tensor.blob, tensor.blob)
            elements = roles.get(value, tensor.size if tensor.dtype in FLOATS else 0)
            # An alias may be read by one operator as codes: the larger count is the true one.
            counted[key] = (tensor.nbytes, max(elements, counted.get(key, (0, 0))[1]))
    size = sum(nbytes for nbytes, _ in counted.values())
    parameters = sum(elements for _, elements in counted.values())
    return Size(
        weight_bytes=size,
        file_bytes=file_bytes,
        parameters=parameters,
        bits_per_weight=round(8 * size / parameters, 4) if parameters else 0.0,
    )


def nodes_bytes(model: TailorModel) -> int:
    """Return the bytes of the model's protobuf without its weights, but with what says where they lie."""
    graph = model.ir_model.clone()
    for each in graph.graphs():
        for value in each.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, WeightTensor):
                shape, name = ir.Shape(tensor.dims), value.name or ""
                value.const_value = ir.ExternalTensor("model.onnx.data", 0, 0, tensor.dtype, shape=shape, name=name)
    return int(ir.to_proto(graph).ByteSize())


def _quantized_operands(model: TailorModel) -> dict[ir.Value, int]:
    """Return how many weights each operand of a quantized operator stands for: none for scales and zero points."""
    counts: dict[ir.Value, int] = {}
    for node in model.nodes():
        for operand, weights in _plain_operands(node).items():
            counts.setdefault(operand, weights)
        if is_op(node, "DequantizeLinear"):
            counts |= _dequantized_operands(node)
        counts |= _integer_operand(node)
        if node.domain != MICROSOFT or node.op_type not in _QUANTIZED:
            continue
        if node.op_type == "QMoE":
            counts |= _expert_operands(node)
            continue
        codes = 1 if node.op_type == "MatMulNBits" else 0
        for index, read in enumerate(node.inputs):
            value = stored_scales(read) if index in {2, 3} else read
            if value is None or not value.is_initializer() or value.const_value is None:
                continue
            if index == codes:
                own = attribute(node, "N", 0) * attribute(node, "K", 0) if codes else 0
                counts[value] = own or value.const_value.nbytes * 8 // attribute(node, "bits", 4)
            elif index in {2, 3}:
                counts.setdefault(value, 0)
    for node in model.nodes():  # what a corrected table adds is no weight of its own
        if is_op(node, "Gather") and node.inputs[0] is not None and "_corrections" in (node.inputs[0].name or ""):
            counts[node.inputs[0]] = 0
    return counts


def _dequantized_operands(node: ir.Node) -> dict[ir.Value, int]:
    """Return the same for one DequantizeLinear of a stored weight."""
    weight, *others = (stored_scales(value) for value in node.inputs)
    if weight is None or not weight.is_initializer() or weight.const_value is None:
        return {}
    return {value: 0 for value in others if value is not None} | {weight: int(weight.const_value.size)}


def _plain_operands(node: ir.Node) -> dict[ir.Value, int]:
    """Return the same for one table in the layout `plain`, which ends in `node`."""
    plain = read_plain(node)
    if plain is None:
        return {}
    codes = plain.codes.const_value
    return {plain.scales: 0} | ({} if codes is None else {plain.codes: codes.nbytes * 8 // plain.bits})


def _integer_operand(node: ir.Node) -> dict[ir.Value, int]:
    """Return the same for the weight of a product of integers."""
    value = integer_weight(node)
    if value is None or not value.is_initializer() or value.const_value is None:
        return {}
    return {value: attribute(node, "N", 0) * attribute(node, "K", 0) or int(value.const_value.size)}


def _expert_operands(node: ir.Node) -> dict[ir.Value, int]:
    """Return the same for one QMoE."""
    counts: dict[ir.Value, int] = {}
    for index in (*_EXPERT_CODES, *_EXPERT_SCALES):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value.const_value is not None:
            bits = attribute(node, "expert_weight_bits", 4)
            counts[value] = value.const_value.nbytes * 8 // bits if index in _EXPERT_CODES else 0
    return counts
