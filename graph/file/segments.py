"""A graph in consecutive segments, so that it runs once for all of them: each from where the one before ended.

The graph is cut behind the nodes that compute certain values. What depends on a weight is handed over a cut; what
follows from the graph's inputs alone, as masks and positions do, is computed again in each segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnx_tailor.graph.file.watch import watch
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.walk import inner_graphs, nodes_in

__all__ = ["Segment", "narrow", "segments"]


@dataclass(frozen=True)
class Segment:
    """What lies between two cuts."""

    reads: tuple[str, ...]
    """Values that earlier segments handed over."""
    yields: tuple[str, ...]
    """Values that later ones read, and those it was cut for."""
    nodes: frozenset[ir.Node]
    """Those between the cuts, and those of their subgraphs."""


def segments(model: TailorModel, weighted: Iterable[ir.Node], cuts: Sequence[ir.Value]) -> list[Segment]:
    """Return the segments that end with the `cuts`: values of the main graph, in its order, computed by nodes.

    `weighted` are the nodes that read a weight. Nothing behind the last cut is part of a segment.
    """
    place = {node: at for at, node in enumerate(model.graph)}
    for node, at in list(place.items()):
        place |= dict.fromkeys(_inside(node), at)
    ends = [place[_producer(cut)] for cut in cuts]
    handed = _dependent(model, {place[node] for node in weighted if node in place}, place)
    found = []
    start, before = -1, tuple[str, ...]()
    for cut, end in zip(cuts, ends, strict=True):
        live = [value for value, at in handed.items() if at <= end and _last_use(value, place) > end]
        yields = tuple(dict.fromkeys([*(value.name or "" for value in live), cut.name or ""]))
        nodes = frozenset(node for node, at in place.items() if start < at <= end)
        found.append(Segment(before, yields, nodes))
        start, before = end, yields
    return found


def narrow(model: TailorModel, reads: Mapping[str, tuple[str, np.dtype]], yields: Mapping[str, str]) -> None:
    """Cut the graph down to a segment: `reads` become inputs, and `yields` its only outputs.

    Both are by the names of the values; `reads` gives the input's name and type, `yields` the output's name. An input
    has no shape, since what the exporter says of it is not always true.
    """
    values = {value.name or "": value for node in model.graph for value in node.outputs}
    given = {}
    model.graph.outputs.clear()
    for name, (title, dtype) in reads.items():
        given[name] = ir.Value(name=title, type=ir.TensorType(ir.DataType.from_numpy(dtype)))
        model.graph.inputs.append(given[name])
    for name, value in given.items():
        values[name].replace_all_uses_with(value)
    watch(model, {title: given.get(name, values[name]) for name, title in yields.items()})
    for value in [each for each in model.graph.inputs if not each.uses()]:
        model.graph.inputs.remove(value)


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """Iterate over the nodes of a node's subgraphs."""
    for graph in inner_graphs(node):
        yield from nodes_in(graph)


def _dependent(model: TailorModel, weighted: set[int], place: Mapping[ir.Node, int]) -> dict[ir.Value, int]:
    """Return the values of the main graph that depend on a weight, each with the place of its node."""
    found: dict[ir.Value, int] = {}
    reached = set(weighted)
    for at, node in enumerate(model.graph):
        if at in reached:
            for value in node.outputs:
                found[value] = at
                reached |= {place[use.node] for use in value.uses()}
    return found


def _last_use(value: ir.Value, place: Mapping[ir.Node, int]) -> int:
    return max((place[use.node] for use in value.uses()), default=-1)
