"""Projections that can be packed: query, key and value, or gate and up, of one activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.meaning.heads import head_nodes
from onnx_tailor.graph.meaning.roles import find_places
from onnx_tailor.graph.model import MICROSOFT, TailorModel
from onnx_tailor.graph.packing.division import attention_shares
from onnx_tailor.graph.packing.linear import Linear, Operand, match_linear
from onnx_tailor.graph.packing.route import Step, follow
from onnx_tailor.weights.parts import put_together
from onnx_tailor.weights.tensors import WeightTensor

_SETS = (("q", "k", "v"), ("gate", "up"))
_LENGTHS = frozenset({"N"})
"""Attributes in which the members may differ: MatMulNBits states its rows."""


@dataclass(frozen=True)
class Member:
    """One projection that is to be packed, with the Add of its bias where all members have one."""

    role: str
    linear: Linear
    bias: Step | None

    @property
    def output(self) -> ir.Value:
        """What reads of it are to read from the packed projection, [..., N]."""
        return self.bias.node.outputs[0] if self.bias is not None else self.linear.output


@dataclass(frozen=True)
class Packable:
    """Projections of one activation, in the order of the packed rows, and their operands put together."""

    members: tuple[Member, ...]
    operands: tuple[tuple[Operand, WeightTensor], ...]
    """The first member's stored inputs, and all members' together."""
    bias: WeightTensor | None
    attention: ir.Node | None
    """The operator that takes the packed output as it is; otherwise a Split divides it."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the members."""
        return tuple(member.role for member in self.members)


@dataclass(frozen=True)
class NotPackable:
    """Projections that belong together and cannot be packed, and why."""

    nodes: tuple[ir.Node, ...]
    reason: str


def find_packable(model: TailorModel) -> Iterator[Packable | NotPackable]:
    """Yield every set of projections that reads one activation and could be one."""
    places = find_places(model, head_nodes(model))
    groups: dict[tuple[ir.Value | None, ir.Graph | ir.Function | None], dict[str, list[Linear]]] = {}
    for node in model.nodes():
        place = places.get(node)
        linear = match_linear(node) if place is not None and place.role is not None else None
        if isinstance(linear, Linear) and place is not None and place.role is not None:
            groups.setdefault((node.inputs[0], node.graph), {}).setdefault(place.role, []).append(linear)
    for found in groups.values():
        for roles in _SETS:
            if all(len(found.get(role, [])) == 1 for role in roles):
                yield match_packable(dict(zip(roles, (found[role][0] for role in roles), strict=True)))


def match_packable(linears: dict[str, Linear]) -> Packable | NotPackable:
    """Return the projections as one, or the reason why they cannot be."""
    nodes = tuple(linear.node for linear in linears.values())
    reason = _difference(linears)
    if reason is not None:
        return NotPackable(nodes, reason)
    steps = [_bias(linear) for linear in linears.values()]
    alike = all(step is not None and step.node.graph is nodes[0].graph for step in steps)
    members = [
        Member(role, linear, step if alike else None)
        for (role, linear), step in zip(linears.items(), steps, strict=True)
    ]
    if any(value.is_graph_output() for member in members for value in (member.linear.output, member.output)):
        return NotPackable(nodes, "one of their outputs is an output of the model")
    attention = _attention(members)
    packed = _together(members)
    if attention is None and not isinstance(packed, str) and not packed[2]:
        # A Split allows any order: the one in which the parts lie in the file needs no bytes moved.
        as_stored = sorted(members, key=_offset)
        other = _together(as_stored)
        if not isinstance(other, str) and other[2]:
            members, packed = as_stored, other
    if isinstance(packed, str):
        return NotPackable(nodes, packed)
    return Packable(tuple(members), packed[0], packed[1], attention)


def _difference(linears: dict[str, Linear]) -> str | None:
    """Return in what the projections differ so that no one operator can stand for all."""
    first_role, first = next(iter(linears.items()))
    for role, linear in linears.items():
        if (linear.node.domain, linear.node.op_type) != (first.node.domain, first.node.op_type):
            return f"{first_role} is a {first.node.op_type} and {role} a {linear.node.op_type}"
        mine, other = _attributes(first.node), _attributes(linear.node)
        for name in sorted(mine | other):
            if mine.get(name) != other.get(name):
                return f"{first_role} has {name} {mine.get(name)} and {role} {other.get(name)}"
        if [_form(operand) for operand in first.operands] != [_form(operand) for operand in linear.operands]:
            forms = [", ".join(f"{o.kind} {o.root.dtype}" for o in each.operands) for each in (first, linear)]
            return f"{first_role} and {role} keep their operands in different forms ({forms[0]}; {forms[1]})"
        if _shared(linear) != _shared(first):  # g_idx, the order of the columns
            return f"{first_role} and {role} have different inputs beside their operands"
    return None


def _shared(linear: Linear) -> dict[int, ir.Value]:
    """Return the inputs that one operator would have for all: none of the operands."""
    own = {operand.index for operand in linear.operands}
    return {i: value for i, value in enumerate(linear.node.inputs) if value is not None and i not in own}


def _attributes(node: ir.Node) -> dict[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items() if name not in _LENGTHS}


def _form(operand: Operand) -> tuple[object, ...]:
    through = [(node.op_type, tuple(sorted(_attributes(node).items(), key=str))) for node in operand.through]
    return operand.index, operand.axis, str(through)


def _bias(linear: Linear) -> Step | None:
    steps = follow(linear).steps
    return steps[0] if steps and steps[0].node.op_type == "Add" and steps[0].vector is not None else None


def _attention(members: Sequence[Member]) -> ir.Node | None:
    """Return the operator that reads all members as its query, key and value and can take them packed."""
    uses = [list(member.output.uses()) for member in members]
    if len(members) != 3 or any(len(each) != 1 for each in uses):
        return None
    nodes = {each[0].node for each in uses}
    node = nodes.pop()
    if nodes or node.domain != MICROSOFT or [each[0].idx for each in uses] != [0, 1, 2]:
        return None
    sizes = [member.linear.rows for member in members]
    shares = attention_shares(node, sum(sizes))
    if isinstance(shares, str) or [share.stop - share.start for share in shares] != sizes:
        return None
    return node


def _together(
    members: Sequence[Member],
) -> tuple[tuple[tuple[Operand, WeightTensor], ...], WeightTensor | None, bool] | str:
    """Return the operands and the bias put together, and whether the weight is one range of a file."""
    operands = []
    for each in zip(*(member.linear.operands for member in members), strict=True):
        found = _joined(each)
        if isinstance(found, str):
            return f"their {each[0].kind} cannot be put together: {found}"
        operands.append((each[0], found))
    vectors = [member.bias.vector for member in members if member.bias is not None and member.bias.vector is not None]
    bias = _joined(vectors) if vectors else None
    if isinstance(bias, str):
        return f"their biases cannot be put together: {bias}"
    view = operands[0][1].view
    return tuple(operands), bias, view is None or hasattr(view, "offset")


def _joined(operands: Sequence[Operand]) -> WeightTensor | str:
    tensors = [WeightTensor.of_value(operand.root) for operand in operands]
    known = [tensor for tensor in tensors if tensor is not None]
    assert len(known) == len(tensors), "match_linear takes stored operands only"
    return put_together(known, operands[0].axis)


def _offset(member: Member) -> int:
    tensor = WeightTensor.of_value(member.linear.operands[0].root)
    return int(getattr(tensor.view if tensor is not None else None, "offset", 0))
