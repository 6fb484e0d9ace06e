"""Refuse a graph that means nothing, before any pass walks it: a circle would never end, a missing value never come."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.file.forms import require_forms
from onnx_tailor.graph.model import ONNX_DOMAINS
from onnx_tailor.graph.walk import inner_graphs, nodes_in
from onnx_tailor.weights.view import packed_bytes

_MENDED = "GatherBlockQuantized"
"""Exporters have written these on data that do not exist; reshape-dim mends them, lint names them."""
_MOST_NODES = 10_000_000
"""Nodes that one function may stand for, with all that it calls."""


def require_plain(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what the reader of the graph passes over or stumbles at: two weights of one name, places that are none.

    Raises:
        ModelError: a name stands twice among the initializers of one graph, an offset or length is no number, a value
            has two types, or an attribute that is to hold a graph holds none.
    """
    _require_plain_graph(model.graph, path, in_function=False)
    for function in model.functions:
        _require_graphs(function.node, path, in_function=True)


def _require_plain_graph(graph: onnx.GraphProto, path: Path, *, in_function: bool) -> None:
    seen: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in seen:
            raise ModelError(f"{path}: the graph has two weights called {tensor.name!r}; export it again")
        seen.add(tensor.name)
        for entry in tensor.external_data:
            if entry.key in {"offset", "length"} and not (entry.value.isascii() and entry.value.isdigit()):
                raise ModelError(
                    f"{path}: weight {tensor.name}: its data entry says {entry.key} {entry.value[:40]!r}, "
                    "which is no number of bytes"
                )
    types = {value.name: value.type for value in graph.input}
    for value in graph.output:
        if value.name in types and types[value.name].WhichOneof("value") and value.type != types[value.name]:
            raise ModelError(
                f"{path}: {value.name!r} is an input of one type and an output of another; export it again"
            )
    _require_graphs(graph.node, path, in_function=in_function)


def _require_graphs(nodes: Iterable[onnx.NodeProto], path: Path, *, in_function: bool) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.ref_attr_name and not in_function:
                raise ModelError(
                    f"{path}: the attribute {attribute.name} of the {node.op_type} node {node.name or '(no name)'} "
                    "refers to a function's, but is in none"
                )
            whole = attribute.type == onnx.AttributeProto.GRAPH
            if whole and (attribute.ref_attr_name or not attribute.HasField("g")):
                raise ModelError(
                    f"{path}: the {node.op_type} node {node.name or '(no name)'} has no graph in its {attribute.name}"
                )
            if attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}:
                for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                    _require_plain_graph(inner, path, in_function=in_function)


def require_sound(model: ir.Model, path: Path) -> None:
    """Check that every value comes from somewhere, and put nodes behind those that they read from.

    Raises:
        ModelError: the nodes form a circle, a value has no origin, a node is not what its operator must be, or the
            model has no version of the ONNX operators.
    """
    if not any(domain in model.opset_imports for domain in ONNX_DOMAINS):
        raise ModelError(f"{path}: the model imports no version of the ONNX operators; export it again")
    _require_few_calls(model, path)
    whole: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in whole:
        _require_text([*graph.initializers] if isinstance(graph, ir.Graph) else [], path)
        _require_text([value.name for value in (*graph.inputs, *graph.outputs)], path)
        for node in nodes_in(graph):
            _require_text([node.name, node.op_type, node.domain, *(value.name for value in node.outputs)], path)
            _require_text([*node.metadata_props, *node.metadata_props.values()], path)
        require_forms(graph, model.opset_imports, path)
        if not _is_sorted(graph, set(), path):
            try:
                graph.sort()
            except ValueError as error:
                raise ModelError(f"{path}: its nodes form a circle, so that none can be the first to run") from error


def require_values(tensor: ir.TensorProtocol, path: Path) -> None:
    """Check that a tensor inside the ONNX file has as many values as its shape says.

    Raises:
        ModelError: it has fewer or more, or no type.
    """
    name = tensor.name or "(no name)"
    try:
        known = tensor.dtype != ir.DataType.UNDEFINED
    except ValueError:  # a number that stands for none
        known = False
    if not known:
        raise ModelError(f"{path}: weight {name} has no type")
    if isinstance(tensor, ir.ExternalTensor):
        return
    dims = tuple(tensor.shape.numpy())
    if any(n < 0 for n in dims) or not _has_values(tensor, math.prod(dims)):
        raise ModelError(f"{path}: weight {name} is {tensor.dtype}{list(dims)}, but its values are not so many")


def _has_values(tensor: ir.TensorProtocol, count: int) -> bool:
    if isinstance(tensor, ir.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
        return len(tensor.raw.raw_data) == packed_bytes(count, tensor.dtype)
    try:
        with np.errstate(all="ignore"):  # values that the type cannot hold
            if tensor.dtype == ir.DataType.STRING:
                return tensor.numpy().size == count
            return tensor.numpy().size == count and len(tensor.tobytes()) == tensor.nbytes
    except Exception:  # whatever numpy raises, the values do not make a tensor of this shape
        return False


def _require_few_calls(model: ir.Model, path: Path) -> None:
    """Refuse functions that call themselves, or each other so often that their bodies would fill the memory."""
    sizes: dict[ir.OperatorIdentifier, int] = {}
    for first in model.functions:
        waiting = [first]
        while waiting:
            calls = [
                node.op_identifier()
                for node in nodes_in(model.functions[waiting[-1]])
                if node.op_identifier() in model.functions
            ]
            unknown = [each for each in calls if each not in sizes]
            if set(unknown) & set(waiting):
                raise ModelError(f"{path}: the function {waiting[-1][1]} calls itself, so that it never ends")
            if unknown:
                waiting.append(unknown[0])
                continue
            here = len(model.functions[waiting[-1]]) + sum(sizes[each] for each in calls)
            if here > _MOST_NODES:
                raise ModelError(f"{path}: the function {waiting[-1][1]} stands for more than {_MOST_NODES:,} nodes")
            sizes[waiting.pop()] = here


def _is_sorted(graph: ir.Graph | ir.Function, seen: set[ir.Value], path: Path) -> bool:
    """Whether nodes stand behind those that they read from, also in subgraphs; `seen` collects what they yield."""
    result = True
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is None or value in seen or (node.op_type == _MENDED and index == 0 and not value.producer()):
                continue
            if value.producer() is None:
                _require_origin(value, path)
            else:
                result = False
        for inner in inner_graphs(node):
            result = _is_sorted(inner, seen, path) and result
        seen.update(node.outputs)
    for value in graph.outputs:
        if value.producer() is None:
            _require_origin(value, path)
    return result


def _require_text(names: Iterable[object], path: Path) -> None:
    """Refuse names that are no UTF-8, which the protobuf library hands out as bytes."""
    for name in names:
        if isinstance(name, bytes):
            raise ModelError(f"{path}: a name in the graph is no text ({name[:40]!r}); the file is damaged")


def _require_origin(value: ir.Value, path: Path) -> None:
    if not (value.is_graph_input() or value.is_initializer()):
        raise ModelError(f"{path}: a node reads or an output names {value.name!r}, which nothing in the graph yields")
