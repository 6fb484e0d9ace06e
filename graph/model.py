"""The model as it flows through the pipeline: an onnx_ir model, where it came from, and safe ways to edit it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from onnx_tailor.graph.walk import graphs_in, nodes_in
from onnx_tailor.report import Change
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.tensors import WeightTensor

MICROSOFT = "com.microsoft"
ONNX_DOMAINS = ("", "ai.onnx")


@dataclass
class TailorModel:
    """One ONNX file in the pipeline. Passes edit it in place."""

    ir_model: ir.Model
    path: Path
    """The file it was read from."""
    locations: tuple[str, ...] = ()
    """Names of the files its weights lie in, relative to the model's folder."""
    files: tuple[DataFile, ...] = ()
    """The files that it was read from: its own, and those of its weights."""
    file_name: str = ""
    """Name of the ONNX file that it becomes; its own by default."""
    loading: tuple[Change, ...] = ()
    """What of the file was changed as it was read."""
    siblings: tuple[TailorModel, ...] = field(default=(), repr=False)
    """The other files of its set, such as the decoder beside an encoder."""
    _names: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        """Keep the file's own name."""
        self.file_name = self.file_name or self.path.name

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.ir_model.graph

    def graphs(self) -> list[ir.Graph]:
        """Return the main graph and every subgraph."""
        return [self.graph, *graphs_in(self.graph)]

    def nodes(self) -> Iterator[ir.Node]:
        """Iterate over the nodes of all graphs, in topological order of each."""
        return nodes_in(self.graph)

    @property
    def opset(self) -> int:
        """The version of the default ONNX domain."""
        return next(self.ir_model.opset_imports[d] for d in ONNX_DOMAINS if d in self.ir_model.opset_imports)

    def fresh(self, name: str) -> str:
        """Return `name`, numbered if the model has it already, and reserve it."""
        if not self._names:
            self._names.update(_all_names(self))
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate

    def initializer(self, tensor: ir.TensorProtocol, name: str, graph: ir.Graph | None = None) -> ir.Value:
        """Register `tensor` in `graph`, by default the main one, where every subgraph sees it, and return its value."""
        name = self.fresh(name)
        if isinstance(tensor, WeightTensor):
            tensor = tensor.renamed(name)
        else:
            tensor.name = name
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        (graph or self.graph).register_initializer(value)
        return value

    def int64s(self, values: Sequence[int], name: str) -> ir.Value:
        """Register a small constant of the main graph, for shapes and axes."""
        return self.constant(ir.tensor(list(values), ir.DataType.INT64), name)

    def constant(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """Register a small tensor in the main graph under `name`, or its equal that has the name already."""
        existing = self.graph.initializers.get(name)
        found = existing.const_value if existing is not None else None
        if existing is not None and found is not None and _equal(found, tensor):
            return existing
        return self.initializer(tensor, name)

    def insert_before(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        attributes: Mapping[str, int | float | str | Sequence[int] | ir.Attr] | None = None,
        name: str,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | None = None,
    ) -> ir.Value:
        """Insert a node with one output in front of `anchor` and return that output."""
        node = ir.node(
            op_type, inputs, attributes=attributes or {}, domain=domain, name=self.fresh(name), num_outputs=1
        )
        output = node.outputs[0]
        output.name = self.fresh(f"{name}_output")
        output.type = ir.TensorType(dtype) if dtype is not None else None
        output.shape = shape
        assert anchor.graph is not None
        anchor.graph.insert_before(anchor, node)
        if domain == MICROSOFT:
            self.ir_model.opset_imports.setdefault(MICROSOFT, 1)
        return output

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` take the place of the node output `old`, also as a graph output, under the old name.

        The node that produced `old` is removed; it must have no other output in use.
        """
        node = old.producer()
        assert node is not None
        assert node.graph is not None
        if new.type is None:
            new.type = old.type
        if new.shape is None:
            new.shape = old.shape
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        node.graph.remove(node, safe=True)
        new.name = name  # graph outputs are part of the model's interface; other names help its reader

    def retire(self, node: ir.Node) -> str | None:
        """Take the name off a node that is to be replaced and return it, so that its successor can bear it.

        People write the names that they see in their file into a recipe; they hold after every pass.
        """
        name, node.name = node.name, None
        self._names.discard(name or "")
        return name

    def forget_names(self) -> None:
        """Look for the names in use anew: nodes are gone, or somebody else has edited the graph."""
        self._names.clear()

    def sweep(self) -> None:
        """Remove the nodes and initializers that nothing reads any more."""
        ir_passes.RemoveUnusedNodesPass()(self.ir_model)
        for graph in self.graphs():  # the pass leaves the subgraphs' initializers
            for name, value in list(graph.initializers.items()):
                if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                    del graph.initializers[name]
        self.forget_names()


def _equal(first: ir.TensorProtocol, second: ir.TensorProtocol) -> bool:
    alike = (first.dtype, first.shape) == (second.dtype, second.shape)
    return alike and first.tobytes() == second.tobytes()


def _all_names(model: TailorModel) -> Iterator[str]:
    for graph in model.graphs():
        yield from (value.name for value in graph.inputs if value.name)
        yield from graph.initializers
    for node in model.nodes():
        if node.name:
            yield node.name
        yield from (value.name for value in node.outputs if value.name)


def behind(value: ir.Value | None, *op_types: str) -> ir.Value | None:
    """Return the value that the first inputs of ONNX operators `op_types` lead back to; `value` if there are none."""
    while value is not None and (node := value.producer()) is not None and is_op(node, *op_types):
        value = node.inputs[0]
    return value


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of the ONNX operators `op_types` of the default domain."""
    return node is not None and node.op_type in op_types and node.domain in ONNX_DOMAINS


def is_contrib(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of the operators `op_types` of ONNX Runtime's own domain."""
    return node is not None and node.domain == MICROSOFT and node.op_type in op_types


def attribute(node: ir.Node, name: str, default: int) -> int:
    """Return the integer attribute `name`."""
    found = node.attributes.get(name)
    return default if found is None else int(found.value)
