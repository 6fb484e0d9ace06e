"""The way from a projection to the nodes that divide its output: what acts on each output feature alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnx_tailor.graph.constants import is_constant
from onnx_tailor.graph.integers import constant_integers, dimensions
from onnx_tailor.graph.model import attribute, is_op
from onnx_tailor.graph.packing.linear import Linear, Operand, stored

Piece = int | ir.Value
"""One entry of a Reshape's shape, or a value that holds one or several of them."""


@dataclass(frozen=True)
class Step:
    """A node on the way that can be repeated for each part."""

    node: ir.Node
    index: int
    """Which of its inputs comes from the projection."""
    tail: tuple[int, ...]
    """The dimensions over which the features lie behind it, in row-major order of the projection's rows."""
    axes: tuple[int, ...]
    """The place of each dimension of `tail`, counted from the end: negative."""
    rank: int | None
    """Dimensions of what it yields, where they follow from the step."""
    vector: Operand | None = None
    """A constant with one element for each feature, such as a bias: it is divided with them."""
    leading: tuple[Piece, ...] | None = None
    """For a Reshape: the entries of its shape in front of the features'."""


@dataclass(frozen=True)
class Route:
    """Where the output features have got to."""

    linear: Linear
    steps: tuple[Step, ...]

    @property
    def value(self) -> ir.Value:
        """What the last step yields."""
        return self.steps[-1].node.outputs[0] if self.steps else self.linear.output

    @property
    def tail(self) -> tuple[int, ...]:
        """The dimensions over which the features lie, in row-major order of the projection's rows."""
        return self.steps[-1].tail if self.steps else (self.linear.rows,)

    @property
    def axes(self) -> tuple[int, ...]:
        """The place of each dimension of `tail` in `value`, counted from the end: negative."""
        return self.steps[-1].axes if self.steps else (-1,)

    @property
    def rank(self) -> int | None:
        """Dimensions of `value`, stated or following from the steps."""
        known = dimensions(self.value)
        if known is not None:
            return len(known)
        return self.steps[-1].rank if self.steps else self.linear.rank

    @property
    def unit(self) -> int:
        """Rows of the projection for each place along the first dimension of `tail`."""
        return math.prod(self.tail[1:])

    @property
    def is_plain(self) -> bool:
        """Whether the features are the last dimension, as the projection yields them."""
        return len(self.tail) == 1 and self.axes == (-1,)


def follow(linear: Linear) -> Route:
    """Go from the projection as far as single readers act on each feature alone."""
    route = Route(linear, ())
    while True:
        uses = list(route.value.uses())
        if len(uses) != 1 or route.value.is_graph_output() or uses[0].node.graph is not linear.node.graph:
            return route
        step = _step(route, uses[0].node, uses[0].idx)
        if step is None:
            return route
        route = Route(linear, (*route.steps, step))


def _step(route: Route, node: ir.Node, index: int) -> Step | None:
    same = Step(node, index, route.tail, route.axes, route.rank)
    if is_op(node, "Cast", "Identity") or (is_op(node, "Clip") and all(map(_is_scalar, node.inputs[1:]))):
        return same if index == 0 else None
    if is_op(node, "Add", "Sub", "Mul", "Div"):
        other = node.inputs[1 - index]
        if _is_scalar(other):
            return same
        vector = _vector(route, other, 1 - index)
        return None if vector is None else replace(same, vector=vector)
    if is_op(node, "Reshape") and index == 0 and route.is_plain:
        return _reshape(route, node)
    if is_op(node, "Transpose"):
        return _transpose(route, node)
    return None


def _vector(route: Route, value: ir.Value | None, index: int) -> Operand | None:
    root = stored(value)
    if root is None or not route.is_plain or root.const_value is None:
        return None
    dims = root.const_value.shape.numpy()
    if not dims or dims[-1] != route.tail[0] or math.prod(dims) != dims[-1]:
        return None
    if len(dims) > (route.rank or 1):
        return None
    return Operand(index, "bias", root, len(dims) - 1)


def _is_scalar(value: ir.Value | None) -> bool:
    if value is None:
        return True
    known = dimensions(value) if is_constant(value) else None
    return known in ([], [1])


def _transpose(route: Route, node: ir.Node) -> Step | None:
    perm = [int(n) for n in node.attributes["perm"].as_ints()] if "perm" in node.attributes else None
    if perm is None and route.rank is not None:
        perm = list(range(route.rank))[::-1]
    if perm is None:
        return None
    rank = len(perm)
    return Step(node, 0, route.tail, tuple(perm.index(axis + rank) - rank for axis in route.axes), rank)


def _reshape(route: Route, node: ir.Node) -> Step | None:
    """Go through a Reshape whose last dimensions hold the features and nothing else."""
    entries = _entries(route, node)
    if entries is None:
        return None
    tail: list[int] = []
    while math.prod(tail) != route.tail[0]:
        last = entries.pop() if entries else None
        if not isinstance(last, int) or last <= 0:
            return None
        tail.insert(0, last)
    rank = len(entries) + len(tail) if all(map(_is_one, entries)) else None
    return Step(node, 0, tuple(tail), tuple(range(-len(tail), 0)), rank, leading=tuple(entries))


def _is_one(piece: Piece) -> bool:
    """Whether a piece of a Concat is one entry; what an Unsqueeze makes into a vector was a scalar."""
    return isinstance(piece, int) or dimensions(piece) == [1] or is_op(piece.producer(), "Unsqueeze")


def _entries(route: Route, node: ir.Node) -> list[Piece] | None:
    """Return the entries of a Reshape's shape, with a -1 among the features' resolved."""
    shape = node.inputs[1]
    whole = constant_integers(shape)
    pieces: list[Piece] = []
    if whole is not None:
        pieces = list(whole)
    else:
        concat = shape.producer() if shape is not None else None
        if concat is None or not is_op(concat, "Concat"):
            return None
        for value in concat.inputs:
            known = constant_integers(value)
            assert value is not None
            pieces += known if known is not None else [value]
    if -1 in pieces:
        at = pieces.index(-1)
        pieces[at] = _inferred(node, pieces, at) or _left_over(route, node, pieces, at) or -1
    return pieces


def _inferred(node: ir.Node, pieces: list[Piece], at: int) -> int | None:
    """Return what the model itself states for the dimension that is written as -1."""
    after = dimensions(node.outputs[0])
    return after[at] if after is not None and len(after) == len(pieces) else None


def _left_over(route: Route, node: ir.Node, pieces: list[Piece], at: int) -> int | None:
    """Return the dimension written as -1 where all in front of the features are seen to be kept."""
    if route.rank is None or at < route.rank - 1:
        return None
    leading, rest = pieces[: route.rank - 1], [n for n in pieces[route.rank - 1 :] if n != -1]
    before = dimensions(route.value) or [None] * route.rank
    copies = attribute(node, "allowzero", 0) == 0
    kept = all((copies and n == 0) or (isinstance(n, int) and n == d) for n, d in zip(leading, before, strict=False))
    known = math.prod(n if isinstance(n, int) else 0 for n in rest)
    features = route.tail[0]
    return features // known if kept and known > 0 and features % known == 0 else None
