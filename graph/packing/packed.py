"""Packed projections: one matrix that holds query, key and value, or gate and up, one below the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.meaning.heads import head_nodes
from onnx_tailor.graph.meaning.roles import find_places
from onnx_tailor.graph.model import MICROSOFT, TailorModel
from onnx_tailor.graph.packing.division import Division, Share, divide
from onnx_tailor.graph.packing.linear import Linear, Operand, match_linear
from onnx_tailor.graph.packing.part_roles import part_roles
from onnx_tailor.weights.parts import take
from onnx_tailor.weights.tensors import WeightTensor

_PACKED_ROLES = frozenset({"qkv", "gate_up"})
_WHOLE_ROLES = frozenset({"q", "k", "v", "o", "gate", "up", "down", "router", "lm_head", "conv_out"})
"""What divides these is no packing: a partial rotation, a vocabulary cut to its own length."""


@dataclass(frozen=True)
class Part:
    """One part of a packed projection, ready to be written."""

    role: str
    """`q`, `k`, `v`, `gate` or `up`."""
    share: Share
    start: int
    stop: int
    """Rows of the packed matrix."""
    operands: tuple[tuple[Operand, WeightTensor], ...]
    """The projection's stored inputs, and the part's slice of each."""
    vectors: tuple[tuple[Operand, WeightTensor], ...]
    """The constants of the nodes behind the projection, such as a bias, and the part's slice of each."""


@dataclass(frozen=True)
class Packed:
    """A packed projection, what divides it, and its parts in the order of its rows."""

    division: Division
    parts: tuple[Part, ...]

    @property
    def linear(self) -> Linear:
        """The projection."""
        return self.division.linear

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the parts."""
        return tuple(part.role for part in self.parts)


@dataclass(frozen=True)
class NotPacked:
    """A projection that looks packed and cannot be divided, and why."""

    node: ir.Node
    reason: str


def find_packed(model: TailorModel) -> Iterator[Packed | NotPacked]:
    """Yield every projection that is packed or looks so."""
    places = find_places(model, head_nodes(model))
    packed = {node for node, place in places.items() if place.role in _PACKED_ROLES}
    whole = {node for node, place in places.items() if place.role in _WHOLE_ROLES}
    for node in list(model.nodes()):
        if node.domain == MICROSOFT and node.op_type == "Attention":
            yield NotPacked(node, "com.microsoft Attention multiplies by the packed weight itself")
            continue
        linear = match_linear(node)
        if linear is None:
            continue
        found = linear if isinstance(linear, str) else match_packed(linear, looks_packed=node in packed)
        if isinstance(found, Packed):
            yield found
        elif found is not None and node not in whole and (not isinstance(linear, str) or node in packed):
            yield NotPacked(node, found)


def match_packed(linear: Linear, *, looks_packed: bool) -> Packed | str | None:
    """Return the parts of `linear`, the reason why it cannot be divided, or None if nothing says that it is packed."""
    division = divide(linear)
    if division is None:
        return "nothing divides its output" if looks_packed else None
    if isinstance(division, str):
        return division
    roles = _roles(division)
    if roles is None:
        return (
            f"{division.how} divides it into {len(division.shares)}, but what reads them does not tell them as query, "
            "key and value, nor as gate and up"
        )
    parts = []
    for role, share in zip(roles, division.shares, strict=True):
        part = _part(division, role, share)
        if isinstance(part, str):
            return part
        parts.append(part)
    return Packed(division, tuple(parts))


def _roles(division: Division) -> tuple[str, ...] | None:
    if division.nodes[0].domain == MICROSOFT:  # the operator's documentation: query, key, value
        return ("q", "k", "v")
    return part_roles([share.outputs for share in division.shares])


def _part(division: Division, role: str, share: Share) -> Part | str:
    linear, (start, stop) = division.linear, division.rows(share)
    vectors = [step.vector for step in division.route.steps if step.vector is not None]
    sliced: list[list[tuple[Operand, WeightTensor]]] = [[], []]
    for into, operands in zip(sliced, (linear.operands, vectors), strict=True):
        for operand in operands:
            tensor = WeightTensor.of_value(operand.root)
            assert tensor is not None
            found = take(tensor, operand.axis, linear.rows, start, stop)
            if isinstance(found, str):
                return f"its {operand.kind} {operand.name} cannot be divided: {found}"
            into.append((operand, found))
    return Part(role, share, start, stop, tuple(sliced[0]), tuple(sliced[1]))
