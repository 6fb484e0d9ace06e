"""Places that two graphs of one network share, whatever their values are called: by the layer and the role there."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnx_tailor.graph.constants import constant_shape, is_constant
from onnx_tailor.graph.meaning.heads import head_nodes
from onnx_tailor.graph.meaning.roles import Place, find_places
from onnx_tailor.graph.model import MICROSOFT, TailorModel, is_op
from onnx_tailor.graph.projections import find_projections
from onnx_tailor.graph.tables.read_block_table import FoundTable, find_block_tables
from onnx_tailor.graph.tables.stacks import is_routed
from onnx_tailor.graph.tables.token_tables import find_tables

__all__ = ["Landmark", "find_landmarks", "products"]

_INTO_STREAM = frozenset({"o", "down", "expert"})
"""Roles whose output is added to the residual stream."""
_REACH = 16
"""Nodes between a projection and its residual addition: a normalization, a scale, casts and reshapes."""
_SKIP_NORMS = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})


@dataclass(frozen=True)
class Landmark:
    """One value with a meaning."""

    layer: int | None
    role: str
    """As in `roles`; with " + residual" for the sum of that projection's output and the stream before it."""
    number: int
    """Counts those that are alike in one graph, from 0: the layers of an encoder and a decoder in one file."""
    value: ir.Value
    node: ir.Node
    """The node that multiplies or gathers; for a residual the one that adds."""
    alone: bool = True
    """Whether no other place of the graph has this layer and role."""

    @property
    def key(self) -> tuple[int | None, str, int]:
        """What is the same in another graph of the network."""
        return self.layer, self.role, self.number

    @property
    def label(self) -> str:
        """The key for people: "layer 3 down"."""
        where = self.role if self.layer is None else f"layer {self.layer} {self.role}"
        return where if self.number == 0 else f"{where} #{self.number + 1}"


def find_landmarks(model: TailorModel) -> list[Landmark]:
    """Return the landmarks of the main graph, in the order in which they are computed.

    They are the rows of the token table, the outputs of every projection whose role is known, float or quantized,
    the sums on the residual stream, and the head's logits.
    """
    order = {node: number for number, node in enumerate(model.graph)}
    places = find_places(model, head_nodes(model))
    found = list(_embeddings(model))
    for node, output in products(model):
        if node in places:
            found += _marks(node, output, places[node])
    inside = sorted((mark for mark in found if mark.node in order), key=lambda mark: order[mark.node])
    counts: Counter[tuple[int | None, str]] = Counter()
    numbered = []
    for mark in inside:
        numbered.append(replace(mark, number=counts[mark.layer, mark.role]))
        counts[mark.layer, mark.role] += 1
    return [replace(mark, alone=counts[mark.layer, mark.role] == 1) for mark in numbered]


def _embeddings(model: TailorModel) -> Iterable[Landmark]:
    for table in find_tables(model):
        yield Landmark(None, "embedding", 0, table.node.outputs[0], table.node)
    for found in find_block_tables(model):
        if isinstance(found, FoundTable) and not is_routed(found.ids):
            yield Landmark(None, "embedding", 0, found.output, found.node)


def products(model: TailorModel) -> Iterable[tuple[ir.Node, ir.Value]]:
    """Yield the nodes that multiply by a weight, with the value that holds [..., N]."""
    for projection in find_projections(model):
        yield projection.node, projection.output
    for node in model.nodes():
        if node.domain == MICROSOFT and node.op_type == "MatMulNBits":
            yield node, node.outputs[0]


def _marks(node: ir.Node, output: ir.Value, where: Place) -> Iterable[Landmark]:
    if where.role is None:
        return
    yield Landmark(where.layer, where.role, 0, output, node)
    if where.role in _INTO_STREAM and (added := _residual(output)) is not None:
        value, adder = added
        yield Landmark(where.layer, f"{where.role} + residual", 0, value, adder)


def _residual(output: ir.Value) -> tuple[ir.Value, ir.Node] | None:
    """Return the nearest sum of `output` and another computed value, and the node that adds."""
    queue, seen = deque([output]), {output}
    for _ in range(_REACH):
        if not queue:
            return None
        value = queue.popleft()
        for use in value.uses():
            node = use.node
            if node.op_type in _SKIP_NORMS:
                whole = node.outputs[3] if len(node.outputs) > 3 else None
                return None if whole is None else (whole, node)
            if is_op(node, "Add") and not any(_is_stored(each) for each in node.inputs):
                return node.outputs[0], node
            for each in node.outputs:
                if each not in seen:
                    seen.add(each)
                    queue.append(each)
    return None


def _is_stored(value: ir.Value | None) -> bool:
    """Whether a value is no activation: an initializer, also behind the Identity nodes that optimum writes."""
    return is_constant(value) or (value is not None and constant_shape(value) is not None)
