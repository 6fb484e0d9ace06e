"""Names of the parts of a packed projection, made from its own, and the metadata that tells their place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnx_tailor.graph.meaning.roles import SCOPES, paths

_SPELLED = {
    frozenset("qkv"): r"qkv_proj|query_key_value|attn_qkv|c_attn|in_proj|Wqkv|qkv",
    frozenset("kv"): r"kv_proj|key_value|Wkv|kv",
    frozenset({"gate", "up"}): r"gate_up_proj|gate_and_up_proj|gate_up|Wi",
}
"""How exporters spell the module of a packed projection, by the roles of its parts."""
_PACKED = {frozenset("qkv"): "qkv_proj", frozenset("kv"): "kv_proj", frozenset({"gate", "up"}): "gate_up_proj"}
_REWRITTEN = (SCOPES, "namespace")
"""Metadata of torch.onnx that hold the path of modules."""
_STALE = "pkg.torch.onnx.fx_node"


def part_name(name: str, role: str, roles: Sequence[str]) -> str | None:
    """Return `name` with the packed module spelled as the part's (`qkv_proj` becomes `q_proj`); None if it has none."""
    pattern = rf"(?<![A-Za-z0-9])(?:{_SPELLED[frozenset(roles)]})(?![A-Za-z0-9])"
    renamed, count = re.subn(pattern, f"{role}_proj", name)
    return renamed if count else None


def packed_name(names: Sequence[str], roles: Sequence[str]) -> str | None:
    """Return the name that all `names` become when each part's module is spelled as the packed one's."""
    found = {_packed(name, role, roles) for name, role in zip(names, roles, strict=True)}
    return found.pop() if len(found) == 1 else None


def _packed(name: str, role: str, roles: Sequence[str]) -> str | None:
    pattern = rf"(?<![A-Za-z0-9])(?:{role}_proj|{role})(?![A-Za-z0-9])"
    renamed, count = re.subn(pattern, packed_spelling(roles), name)
    return renamed if count else None


def packed_spelling(roles: Sequence[str]) -> str:
    """Return what a packed projection of these roles is called: `qkv_proj`, `gate_up_proj`."""
    return _PACKED[frozenset(roles)]


def operand_name(node: ir.Node, own: str, kind: str, role: str, roles: Sequence[str]) -> str:
    """Return the name of a part's weight, scales, zero points or bias.

    It is the operand's own where that tells the module, else one made of the module's or the node's path.
    """
    direct = part_name(own, role, roles)
    if direct is not None:
        return direct
    told = paths(node, own)
    for source in ("module scopes", "node name"):
        path = part_name(told.get(source, ""), role, roles)
        if path is not None:
            return f"{re.sub(r'[/]+', '.', path).strip('.')}.{kind}"
    return f"{own}.{role}_proj"


def packed_operand_name(nodes: Sequence[ir.Node], own: Sequence[str], kind: str, roles: Sequence[str]) -> str:
    """Return the name of the packed weight, scales, zero points or bias, from those of the parts."""
    direct = packed_name(own, roles)
    if direct is not None:
        return direct
    for source in ("module scopes", "node name"):
        path = packed_name([paths(node, "").get(source, "") for node in nodes], roles)
        if path is not None:
            return f"{re.sub(r'[/]+', '.', path).strip('.')}.{kind}"
    return f"{own[0]}.{packed_spelling(roles)}"


def packed_metadata(nodes: Sequence[ir.Node], roles: Sequence[str]) -> Mapping[str, str]:
    """Return the first node's metadata with the module's path spelled as the packed one's."""
    found = dict(nodes[0].metadata_props)
    found.pop(_STALE, None)
    for key in _REWRITTEN:
        if key in found:
            found[key] = _packed(found[key], roles[0], roles) or found[key]
    return found


def node_name(node: ir.Node, role: str, roles: Sequence[str]) -> str:
    """Return the name of a part's node, or of a node behind the projection that is repeated for the part."""
    name = node.name or node.op_type
    return part_name(name, role, roles) or f"{name}/{role}_proj"


def part_metadata(node: ir.Node, role: str, roles: Sequence[str]) -> Mapping[str, str]:
    """Return the node's metadata with the module's path spelled as the part's."""
    found = dict(node.metadata_props)
    found.pop(_STALE, None)
    for key in _REWRITTEN:
        if key in found:
            found[key] = part_name(found[key], role, roles) or found[key]
    return found
