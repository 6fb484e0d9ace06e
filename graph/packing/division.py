"""How a projection's output is divided: the bounds of its parts, as the nodes that divide it state them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.constants import FLOATS
from onnx_tailor.graph.integers import constant_integers, dimensions
from onnx_tailor.graph.model import MICROSOFT, ONNX_DOMAINS, attribute
from onnx_tailor.graph.packing.linear import Linear
from onnx_tailor.graph.packing.route import Route, follow

_TAKES_PACKED = ("GroupQueryAttention", "SparseAttention", "PagedAttention")
_SLICE_INPUTS = ("starts", "ends", "axes", "steps")


@dataclass(frozen=True)
class Share:
    """One part: the places `start` to `stop` along the divided dimension, and the values that hold it today."""

    start: int
    stop: int
    outputs: tuple[ir.Value, ...] = ()
    """Empty where an attention divides its input itself."""


@dataclass(frozen=True)
class Division:
    """A projection whose output is divided into ranges of its rows."""

    route: Route
    nodes: tuple[ir.Node, ...]
    """The Split, the Slices, the Gathers, or the attention."""
    shares: tuple[Share, ...]
    """In the order of the projection's rows, without gaps."""

    @property
    def linear(self) -> Linear:
        """The projection."""
        return self.route.linear

    @property
    def how(self) -> str:
        """The operator that divides it."""
        return self.nodes[0].op_type

    def rows(self, share: Share) -> tuple[int, int]:
        """Return the projection's rows (start, stop) that `share` is made of."""
        return share.start * self.route.unit, share.stop * self.route.unit


def divide(linear: Linear) -> Division | str | None:
    """Return how `linear` is divided, the reason why that is not by whole ranges of rows, or None if it is not."""
    route = follow(linear)
    nodes = tuple(dict.fromkeys(use.node for use in route.value.uses()))
    kinds = {node.op_type for node in nodes if node.domain in (*ONNX_DOMAINS, MICROSOFT)}
    if len(nodes) == 1 and nodes[0].domain == MICROSOFT:
        found = _by_attention(route, nodes[0])
    elif kinds == {"Split"} and len(nodes) == 1:
        found = _by_split(route, nodes[0])
    elif kinds == {"Slice"}:
        found = _by_slices(route, nodes)
    elif kinds == {"Gather"}:
        found = _by_gathers(route, nodes)
    else:
        return None
    if found is None or isinstance(found, str):
        return found
    if route.value.is_graph_output() or any(step.node.outputs[0].is_graph_output() for step in route.steps):
        return "its output is an output of the model as well"
    if any(node.graph is not linear.node.graph for node in nodes):
        return f"{nodes[0].op_type} {nodes[0].name} divides it inside a subgraph"
    shares = sorted(found, key=lambda share: share.start)
    bounds = [0, *(share.stop for share in shares)]
    if [share.start for share in shares] != bounds[:-1] or bounds[-1] != route.tail[0]:
        ranges = ", ".join(f"{share.start} to {share.stop}" for share in shares)
        return f"the ranges {ranges} do not make up the whole of its {route.tail[0]} places"
    return Division(route, nodes, tuple(shares)) if len(shares) > 1 else None


def _by_attention(route: Route, node: ir.Node) -> Sequence[Share] | str | None:
    empty = [index >= len(node.inputs) or node.inputs[index] is None for index in (1, 2)]
    whole = node.inputs[0] is route.value
    if node.op_type == "BiasSplitGelu" and whole:
        return f"BiasSplitGelu {node.name} takes both halves in one input and divides them itself"
    if not whole or not any(empty) or not node.op_type.endswith("Attention"):
        return None
    if node.op_type == "MultiHeadAttention":
        return f"MultiHeadAttention {node.name} takes query, key and value interleaved head by head"
    if not all(empty) or not route.is_plain:
        return f"{node.op_type} {node.name} takes it packed, in a form that is not known to have an unpacked one"
    return attention_shares(node, route.tail[0])


def attention_shares(node: ir.Node, rows: int) -> list[Share] | str:
    """Return how an attention divides `rows` packed rows of query, key and value, or why it takes none packed.

    The form is that of GroupQueryAttention's documentation: (num_heads + 2 * kv_num_heads) * head_size.
    """
    if node.domain != MICROSOFT or node.op_type not in _TAKES_PACKED:
        return f"{node.op_type} {node.name} takes it packed, in a form that is not known to have an unpacked one"
    heads, own = attribute(node, "num_heads", 0), attribute(node, "kv_num_heads", 0)
    size, odd = divmod(rows, max(1, heads + 2 * own))
    stated = _cached_size(node)
    if odd or not heads or not own or stated not in {None, size}:
        cache = f" and a cache of {stated} for each head" if stated else ""
        return f"{node.op_type} {node.name} has {heads} and {own} heads, which does not fit {rows} rows{cache}"
    ends = [heads * size, (heads + own) * size, (heads + 2 * own) * size]
    return [Share(start, stop) for start, stop in itertools.pairwise([0, *ends])]


def _cached_size(node: ir.Node) -> int | None:
    """Return the size of a head in the cache of keys, where it is stated and not packed itself."""
    cache = node.inputs[3] if len(node.inputs) > 3 and node.op_type != "PagedAttention" else None
    known = dimensions(cache)
    return known[-1] if cache is not None and cache.dtype in FLOATS and known else None


def _by_split(route: Route, node: ir.Node) -> Sequence[Share] | str | None:
    place = _place(route, attribute(node, "axis", 0), node)
    if place != 0:
        return place if isinstance(place, str) else None
    count, total = len(node.outputs), route.tail[0]
    stated = constant_integers(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if len(node.inputs) > 1 and node.inputs[1] is not None and stated is None:
        return f"the sizes of Split {node.name} are computed"
    if stated is None and "split" in node.attributes:
        stated = [int(n) for n in node.attributes["split"].as_ints()]
    if stated is None:  # equal parts; since opset 18 the last may be smaller
        each = -(-total // count)
        stated = [each] * (count - 1) + [total - each * (count - 1)]
    if len(stated) != count:
        return f"Split {node.name} has {count} outputs and {len(stated)} sizes"
    ends = [0, *itertools.accumulate(stated)]
    return [Share(a, b, (out,)) for (a, b), out in zip(itertools.pairwise(ends), node.outputs, strict=True)]


def _by_slices(route: Route, nodes: Sequence[ir.Node]) -> Sequence[Share] | str | None:
    outputs: dict[tuple[int, int], list[ir.Value]] = {}
    total = route.tail[0]
    for node in nodes:
        starts, ends, axes, steps = (_slice_input(node, i, name) for i, name in enumerate(_SLICE_INPUTS, 1))
        if axes is None:
            axes = list(range(len(starts))) if starts is not None else [-1]
        places = [_place(route, axis, node) for axis in axes]
        if places != [0]:
            return next((place for place in places if isinstance(place, str)), None)
        if starts is None or ends is None:
            return f"the bounds of Slice {node.name} are computed"
        if steps not in (None, [1]):
            return f"its parts are interleaved: Slice {node.name} has the step {steps[0]}"
        start, stop = (min(n, total) if n >= 0 else max(0, n + total) for n in (starts[0], ends[0]))
        if start >= stop:
            return f"Slice {node.name} takes nothing"
        outputs.setdefault((start, stop), []).append(node.outputs[0])
    return [Share(start, stop, tuple(values)) for (start, stop), values in outputs.items()]


def _by_gathers(route: Route, nodes: Sequence[ir.Node]) -> Sequence[Share] | str | None:
    outputs: dict[int, list[ir.Value]] = {}
    for node in nodes:
        place = _place(route, attribute(node, "axis", 0), node)
        index, shape = constant_integers(node.inputs[1]), dimensions(node.inputs[1])
        if place != 0 or node.inputs[0] is not route.value or index is None or shape not in ([], [1]):
            return place if isinstance(place, str) else None
        outputs.setdefault(index[0] % route.tail[0], []).append(node.outputs[0])
    return [Share(at, at + 1, tuple(values)) for at, values in outputs.items()]


def _place(route: Route, axis: int, node: ir.Node) -> int | str | None:
    """Return which of the features' dimensions `axis` is, a reason where it is not the first, None for none."""
    if axis >= 0:
        if route.rank is None:
            return f"the rank in front of {node.op_type} {node.name} is not stated, so its axis {axis} may be any"
        axis -= route.rank
    if axis not in route.axes:
        return None
    place = route.axes.index(axis)
    if place:
        groups = " times ".join(str(n) for n in route.tail[:place])
        return f"its parts are interleaved: {node.op_type} {node.name} divides each of {groups} groups of rows"
    return place


def _slice_input(node: ir.Node, index: int, name: str) -> list[int] | None:
    if name in node.attributes:  # before opset 10
        return [int(n) for n in node.attributes[name].as_ints()]
    return constant_integers(node.inputs[index]) if index < len(node.inputs) else None
