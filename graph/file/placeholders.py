"""A model as protobuf whose weights are placeholders, for libraries that know protobuf only.

A placeholder is an external-data entry with a location that no file has; the way back finds the weight by it.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.weights.tensors import WeightTensor

PREFIX = "onnx-tailor-weight-"
"""Of the locations."""


def to_placeholders(model: TailorModel) -> tuple[onnx.ModelProto, dict[str, WeightTensor]]:
    """Return the model without weights, and the weights by their placeholders' locations."""
    weights: dict[str, WeightTensor] = {}
    kept: list[tuple[ir.Value, WeightTensor]] = []
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, WeightTensor):
                location = f"{PREFIX}{len(weights)}"
                weights[location] = tensor
                kept.append((value, tensor))
                value.const_value = ir.ExternalTensor(
                    location, 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.dims), name=value.name or ""
                )
    try:
        return ir.to_proto(model.ir_model), weights
    finally:
        for value, tensor in kept:
            value.const_value = tensor


def from_placeholders(model: TailorModel, proto: onnx.ModelProto, weights: Mapping[str, WeightTensor]) -> ir.Model:
    """Return `proto` as a model with its weights in their places again.

    Raises:
        ModelError: the protobuf is no model, or refers to data that are no weight of `model`.
    """
    try:
        result = ir.from_proto(proto)
    except Exception as error:  # whatever the deserializer raises, the graph is broken
        raise ModelError(f"{model.path}: the edited graph cannot be read ({error})") from error
    for graph in result.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                weight = weights.get(str(tensor.location))
                if weight is None:
                    raise ModelError(f"{model.path}: the edited graph's weight {name} refers to a file, {tensor.path}")
                value.const_value = weight.renamed(name)
    _keep_metadata(model, result)
    return result


def _keep_metadata(model: TailorModel, result: ir.Model) -> None:
    """Give nodes that are still there what they said of themselves, such as the modules that they are from."""
    known = {(node.name, node.domain, node.op_type): node for node in model.nodes()}
    for graph in result.graphs():
        for node in graph:
            before = known.get((node.name, node.domain, node.op_type))
            if node.name and before is not None:
                node.metadata_props.update(before.metadata_props)
                node.doc_string = node.doc_string or before.doc_string
