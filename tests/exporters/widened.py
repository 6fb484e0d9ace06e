"""A bfloat16 model with every value as float32, so that a provider without bfloat16 kernels can run it.

Widening a weight is exact. What the nodes compute is rounded to another type, so that this shows whether two bfloat16
files compute the same, not what either computes to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto, numpy_helper

_TYPES = ("to", "dtype", "output_dtype", "stash_type")
"""Attributes that hold an element type."""


def widen(source: Path, target: Path) -> None:
    """Write the model at `source` with float32 in the place of bfloat16."""
    model = onnx.load(source)
    _graph(model.graph)
    for function in model.functions:
        _nodes(function.node)
        _infos(function.value_info)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)


def _graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _tensor(tensor)
    _infos((*graph.input, *graph.output, *graph.value_info))
    _nodes(graph.node)


def _nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _tensor(attribute.t)
            elif attribute.type == AttributeProto.GRAPH:
                _graph(attribute.g)
            elif attribute.name in _TYPES and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT


def _tensor(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _infos(infos: Iterable[onnx.ValueInfoProto]) -> None:
    for info in infos:
        _type(info.type)


def _type(kind: TypeProto) -> None:
    if kind.tensor_type.elem_type == TensorProto.BFLOAT16:
        kind.tensor_type.elem_type = TensorProto.FLOAT
