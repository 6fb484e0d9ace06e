"""A model's graph with other outputs and inputs than its own, to look inside it and to try other weights.

The weights stay where they lie: the result refers to the files beside the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.file.size import weight_tensors
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.view import View

__all__ = ["let_override", "serialize", "watch", "weights_folder"]


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


def weights_folder(model: TailorModel) -> Path:
    """Return the folder in which ONNX Runtime, which follows no link out of it, finds the files of all weights."""
    beside = model.path.parent.resolve()
    if all(file.path.resolve().is_relative_to(beside) for file in model.files):
        return beside
    return model.path.resolve().parent  # in a download cache: the links lead there


def serialize(model: TailorModel) -> bytes:
    """Return the model as protobuf, over the weights in `weights_folder`; the model must not be used afterwards.

    Weights that a pass computes travel inside the graph.

    Raises:
        ModelError: they are beyond protobuf's 2 GB together.
    """
    folder = weights_folder(model)
    for value in weight_tensors(model):
        view = _in_file(value.const_value)
        if view is not None:
            assert isinstance(view.file, DataFile)
            location = view.file.path.resolve().relative_to(folder).as_posix()
            value.const_value = ir.ExternalTensor(
                location, view.offset, view.nbytes, view.dtype, shape=ir.Shape(view.shape), name=value.name or ""
            )
    try:
        return ir.to_proto(model.ir_model).SerializeToString()
    except ValueError as error:
        raise ModelError(f"{model.path}: what was rewritten is larger than protobuf's 2 GB") from error


def _in_file(tensor: ir.TensorProtocol | None) -> View | None:
    """Return the range of a file that holds the tensor's elements in their order, if there is one."""
    view = tensor.view if isinstance(tensor, WeightTensor) else None
    return view if isinstance(view, View) and view.is_contiguous and isinstance(view.file, DataFile) else None
