"""Which layer a weight belongs to and which part it plays there: by structure, then by the names exporters leave."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.meaning.dataflow import Flow
from onnx_tailor.graph.meaning.structure import Structure, find_structure
from onnx_tailor.graph.model import TailorModel

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key under which torch.onnx (dynamo) keeps the path of modules: its node names say nothing."""

_LAYER = re.compile(r"(?:^|[./_'])(?:layers?|h|blocks?|blk)[./_](\d+)(?=[./_']|$)")

# First match wins. Each pattern is searched in the path with every separator turned into a dot.
_ROLES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, re.compile(rf"(?:^|\.)(?:{pattern})(?:\.|$)"))
    for role, pattern in (
        ("router", r"router|mlp\.gate|block_sparse_moe\.gate|gate\.wg"),
        ("expert", r"experts\.\d+\..*|experts"),
        ("conv_in", r"conv\.in_proj"),
        ("conv_out", r"conv\.out_proj"),
        ("down", r"DenseReluDense\.wo"),
        ("qkv", r"qkv_proj|qkv|query_key_value|Wqkv|c_attn|in_proj|attn_qkv"),
        ("gate_up", r"gate_up_proj|gate_up|Wi"),
        ("q", r"q_proj|query|q|wq|q_lin"),
        ("k", r"k_proj|key|k|wk|k_lin"),
        ("v", r"v_proj|value|v|wv|v_lin"),
        ("o", r"o_proj|out_proj|attn\.c_proj|attention\.dense|attention\.output\.dense|o|wo|out_lin|attn\.Wo"),
        ("gate", r"gate_proj|w1|wi_0"),
        ("up", r"up_proj|fc1|fc_in|c_fc|w3|wi|wi_1|intermediate\.dense|lin1|dense_h_to_4h"),
        ("down", r"down_proj|fc2|fc_out|mlp\.c_proj|w2|mlp\.Wo|output\.dense|lin2|dense_4h_to_h"),
    )
)


@dataclass(frozen=True)
class Place:
    """Where in the network a weight stands; None for what could not be told."""

    layer: int | None
    role: str | None
    recognised_by: str
    """What told: `structure`, `node name`, `weight name`, `module scopes` or `nothing`."""


def find_places(model: TailorModel, heads: Iterable[ir.Node]) -> dict[ir.Node, Place]:
    """Return the place of every node that multiplies by stored weights; `heads` are those that yield the logits.

    The role comes from the structure, and from names where that tells none. The number of a layer comes from a name
    where one tells it, since a file may hold layers 16 to 31 of a network; the structure says which products share it,
    and counts where no name does.
    """
    flow, heads = Flow(model), set(heads)
    structure = find_structure(flow, heads)
    named = {node: place(node, product.weight) for node, product in flow.products.items()}
    numbers: dict[tuple[int, int], Counter[int]] = {}
    for node, group in structure.groups.items():
        layer = named[node].layer
        numbers.setdefault(group, Counter()).update([] if layer is None else [layer])
    return {
        node: Place(None, "lm_head", "structure") if node in heads else _joined(node, names, structure, numbers)
        for node, names in named.items()
    }


def _joined(node: ir.Node, names: Place, structure: Structure, numbers: dict[tuple[int, int], Counter[int]]) -> Place:
    role, layer, told_by = structure.roles.get(node), names.layer, []
    # A name may tell more than the structure does: which feed-forward networks are experts.
    finer = names.role == "expert" and role in {"gate", "up", "gate_up", "down"}
    by_structure = role is not None and not finer
    if by_structure:
        told_by.append("structure")
    elif names.role is not None:
        role = names.role
    group = structure.groups.get(node)
    if layer is None and group is not None:
        common = numbers[group].most_common(1)
        layer = common[0][0] if common else group[1]
        told_by.append("structure")
    if not by_structure or names.layer is not None:
        told_by += [] if names.recognised_by == "nothing" else names.recognised_by.split(", ")
    return Place(layer, role, ", ".join(dict.fromkeys(told_by)) or "nothing")


def paths(node: ir.Node, weight: str) -> dict[str, str]:
    """Return the names that may tell a weight's place, by what they are."""
    scopes = node.metadata_props.get(SCOPES, "")
    inner = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    # The last scope is the operator, the one before it the module that called it.
    module = inner[-2] if len(inner) > 1 else ""
    return {"module scopes": module, "weight name": weight, "node name": node.name or ""}


def place(node: ir.Node, weight: str) -> Place:
    """Tell layer and role from the names around `node`, which reads the weight called `weight`."""
    layer: int | None = None
    role: str | None = None
    told_by = []
    for source, text in paths(node, weight).items():
        if layer is None and (found := _LAYER.search(text)):
            layer = int(found[1])
            told_by.append(source)
        if role is None and (name := _role(text)):
            role = name
            told_by.append(source)
    return Place(layer, role, ", ".join(dict.fromkeys(told_by)) or "nothing")


def _role(text: str) -> str | None:
    path = re.sub(r"[/_]{0,1}/|::", ".", text)
    return next((role for role, pattern in _ROLES if pattern.search(path)), None)
