"""A model's graph with other outputs and inputs than its own, to look inside it and to try other weights.

The weights stay where they lie: the result refers to the files beside the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.size import weight_tensors
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.view import View

__all__ = ["let_override", "serialize", "watch"]


def watch(model: TailorModel, values: Mapping[str, ir.Value], *, keep_outputs: bool = False) -> None:
    """Make `values` outputs of the graph, by the names given; with `keep_outputs`, besides its own.

    Without it the graph is cut down to what computes them.
    """
    if not keep_outputs:
        model.graph.outputs.clear()
    for name, value in values.items():
        # Identity, because a graph input cannot be an output, nor a value two outputs.
        node = ir.node("Identity", [value], name=f"{name}/identity")
        node.outputs[0].name = name
        node.outputs[0].type = value.type
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    model.sweep()


def let_override(model: TailorModel, initializers: Iterable[ir.Value]) -> None:
    """Let a run feed other values for these initializers; without a feed they keep their own.

    ONNX does so for an initializer that is an input as well. It is then no constant for the optimizer.
    """
    for value in dict.fromkeys(initializers):
        if not value.is_graph_input():
            model.graph.inputs.append(value)


def serialize(model: TailorModel) -> bytes:
    """Return the model as protobuf; its weights must still be those that `load` found.

    ONNX Runtime finds them when it is told the model's folder.
    """
    folder = model.path.parent
    for value in weight_tensors(model):
        tensor = value.const_value
        if isinstance(tensor, WeightTensor):
            view = tensor.view
            assert view is not None, "load makes contiguous views of files"
            assert isinstance(view, View)
            if not isinstance(view.file, DataFile):  # so small that it lies in the protobuf itself
                continue
            location = view.file.path.relative_to(folder).as_posix()
            value.const_value = ir.ExternalTensor(
                location, view.offset, view.nbytes, view.dtype, shape=ir.Shape(view.shape), name=value.name or ""
            )
    return ir.to_proto(model.ir_model).SerializeToString()
