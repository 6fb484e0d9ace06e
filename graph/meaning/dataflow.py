"""How values flow between the products of a model: what each one is computed from, and how deep in the network.

Every question about a network's structure is asked in terms of products (see `products`): which of them does this
value come from, which does it reach, without passing through another one. Shapes are no flow: what comes out of a
Shape node says nothing about the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import onnx_ir as ir

from onnx_tailor.graph.constants import FLOATS
from onnx_tailor.graph.meaning.products import Product, find_products
from onnx_tailor.graph.model import ONNX_DOMAINS, TailorModel, is_contrib, is_op
from onnx_tailor.graph.walk import inner_graphs

_NO_FLOW = ("Shape", "Size", "NonZero", "ConstantOfShape", "Range")
_ONE_INPUT = ("Reshape", "Expand", "Slice", "Unsqueeze", "Squeeze", "Tile", "Pad", "Split")
_STATES = ("past", "cache", "conv_state", "recurrent_state")
REACH = 600
"""Nodes that a search visits before it gives up: rotary embeddings written out take about sixty."""


class Flow:
    """The flow of one model, computed when it is asked for. Do not keep it across an edit."""

    def __init__(self, model: TailorModel) -> None:
        self.nodes = list(model.nodes())
        self.products = find_products(self.nodes)
        self._owner: dict[ir.Graph, ir.Node] = {graph: node for node in self.nodes for graph in inner_graphs(node)}

    def before(
        self, value: ir.Value, *, stop: Callable[[ir.Node], bool] | None = None, most: int | None = None
    ) -> Reached:
        """Search backward from `value` to the nearest products.

        `stop` says which other nodes end the search; they are returned too. Who has no use for more than `most`
        products gets an incomplete answer once there are more: behind a residual stream are all layers' products.
        """
        found = Reached()
        queue, seen = [value], {value}
        while queue and len(seen) < REACH and (most is None or len(found.products) <= most):
            at = queue.pop()
            producer = at.producer()
            if producer is None:
                if _is_state_free_input(at):
                    found.roots.append(at)
                continue
            if producer in self.products:
                found.products.append(self.products[producer])
                continue
            if stop is not None and stop(producer):
                found.stopped.append(producer)
                continue
            if _is_table(producer):
                found.roots.append(at)
                continue
            found.passed.append(producer)
            fresh = [each for each in _sources(at, producer) if each not in seen]
            seen.update(fresh)
            queue += fresh
        found.complete = not queue and (most is None or len(found.products) <= most)
        return found

    def after(self, value: ir.Value, *, stop: Callable[[ir.Node, int], bool] | None = None) -> Reached:
        """Search forward from `value` to the nearest products, as `before` does; `stop` also gets the input's index."""
        found = Reached()
        queue, seen = [value], {value}
        while queue and len(seen) < REACH:
            at = queue.pop()
            fresh: list[ir.Value] = []
            if at.is_graph_output() and at.graph in self._owner:
                owner = self._owner[at.graph]
                index = next(i for i, each in enumerate(at.graph.outputs) if each is at)
                fresh += owner.outputs[index : index + 1]
            for use in at.uses():
                node = use.node
                if node in self.products:
                    if use.idx == 0:  # anything else is a bias
                        found.products.append(self.products[node])
                elif stop is not None and stop(node, use.idx):
                    found.stopped.append(node)
                elif not is_op(node, *_NO_FLOW) and (use.idx == 0 or not is_op(node, *_ONE_INPUT)):
                    found.passed.append(node)
                    fresh += node.outputs
            fresh = [each for each in fresh if each not in seen]
            seen.update(fresh)
            queue += fresh
        found.complete = not queue
        return found

    def depth(self, value: ir.Value) -> int:
        """Return how many products lie on the longest way to `value`."""
        return self._depths_and_roots[0].get(value, 0)

    def roots(self, value: ir.Value) -> frozenset[ir.Value]:
        """Return the float inputs and gathered tables that reach `value` without passing through a product.

        Along a residual stream these stay the same from its beginning to its end: they say which stream it is.
        """
        return self._depths_and_roots[1].get(value, frozenset())

    def levels(self, graph: ir.Graph | None) -> Iterator[ir.Graph]:
        """Yield `graph` and the graphs around it, the innermost first."""
        while graph is not None:
            yield graph
            owner = self._owner.get(graph)
            found = owner.graph if owner is not None else None
            graph = found if isinstance(found, ir.Graph) else None

    @cached_property
    def _depths_and_roots(self) -> tuple[dict[ir.Value, int], dict[ir.Value, frozenset[ir.Value]]]:
        depths: dict[ir.Value, int] = {}
        roots: dict[ir.Value, frozenset[ir.Value]] = {}
        for node in self._inner_first():
            product = self.products.get(node)
            deepest = 0
            union: frozenset[ir.Value] = frozenset()
            for output in node.outputs:
                for value in _sources(output, node):
                    deepest = max(deepest, depths.get(value, 0))
                    if value.producer() is None and _is_state_free_input(value):
                        union |= {value}
                    else:
                        union |= roots.get(value, frozenset())
            for output in node.outputs:
                depths[output] = deepest + (product is not None)
                roots[output] = frozenset() if product else frozenset({output}) if _is_table(node) else union
        return depths, roots

    def _inner_first(self) -> Iterator[ir.Node]:
        """Yield the nodes in topological order, those of a subgraph before the node that holds it."""
        held: list[ir.Node] = []
        for node in self.nodes:  # the traversal yields a node before its subgraphs
            while held and not _inside(node, held[-1], self._owner):
                yield held.pop()
            if next(inner_graphs(node), None) is not None:  # a graph without nodes is false
                held.append(node)
            else:
                yield node
        yield from reversed(held)


class Reached:
    """What a search met."""

    def __init__(self) -> None:
        self.products: list[Product] = []
        self.passed: list[ir.Node] = []
        """Nodes that were passed through."""
        self.roots: list[ir.Value] = []
        """Float inputs and gathered tables."""
        self.stopped: list[ir.Node] = []
        """Nodes at which the search was told to end."""
        self.complete = True
        """Whether the search came to its end."""


def _inside(node: ir.Node, holder: ir.Node, owner: dict[ir.Graph, ir.Node]) -> bool:
    graph = node.graph
    while isinstance(graph, ir.Graph) and graph in owner:
        if owner[graph] is holder:
            return True
        graph = owner[graph].graph
    return False


def _sources(value: ir.Value, node: ir.Node) -> list[ir.Value]:
    """Return the values from which `value`, an output of `node`, gets its numbers."""
    op_type = node.op_type if node.domain in ONNX_DOMAINS else ""
    if op_type in _NO_FLOW:
        return []
    if op_type == "If":
        index = next(i for i, each in enumerate(node.outputs) if each is value)
        return [graph.outputs[index] for graph in inner_graphs(node)]
    if op_type in _ONE_INPUT:
        return [each for each in node.inputs[:1] if each is not None]
    if op_type == "Where":
        return [each for each in node.inputs[1:] if each is not None]
    outer = [each for graph in inner_graphs(node) for each in graph.outputs]
    return [each for each in node.inputs if each is not None] + outer


def _is_table(node: ir.Node) -> bool:
    """Whether `node` gathers rows of stored numbers, as an embedding does."""
    if is_contrib(node, "GatherBlockQuantized", "EmbedLayerNormalization"):
        return True
    if not is_op(node, "Gather"):
        return False
    data = node.inputs[0]
    while data is not None and is_op(data.producer(), "Cast", "Transpose", "Identity", "DequantizeLinear"):
        producer = data.producer()
        assert producer is not None
        data = producer.inputs[0]
    return data is not None and data.is_initializer() and not data.is_graph_input()


def _is_state_free_input(value: ir.Value) -> bool:
    """Whether `value` is a float input of the model that is no state of the tokens before."""
    if not value.is_graph_input() or (value.dtype is not None and value.dtype not in FLOATS):
        return False
    return not any(word in (value.name or "").lower() for word in _STATES)
