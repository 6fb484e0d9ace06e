"""Which layer a weight belongs to and which part it plays there, read from the names that exporters leave."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key under which torch.onnx (dynamo) keeps the path of modules: its node names say nothing."""

_LAYER = re.compile(r"(?:^|[./_'])(?:layers?|h|blocks?|blk)[./_](\d+)(?=[./_']|$)")

# First match wins. Each pattern is searched in the path with every separator turned into a dot.
_ROLES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, re.compile(rf"(?:^|\.)(?:{pattern})(?:\.|$)"))
    for role, pattern in (
        ("router", r"router|mlp\.gate|block_sparse_moe\.gate|gate\.wg"),
        ("expert", r"experts\.\d+\..*|experts"),
        ("qkv", r"qkv_proj|qkv|query_key_value|Wqkv|c_attn|in_proj|attn_qkv"),
        ("gate_up", r"gate_up_proj|gate_up|Wi"),
        ("q", r"q_proj|query|q|wq|q_lin"),
        ("k", r"k_proj|key|k|wk|k_lin"),
        ("v", r"v_proj|value|v|wv|v_lin"),
        ("o", r"o_proj|out_proj|attn\.c_proj|attention\.dense|attention\.output\.dense|o|wo|out_lin|attn\.Wo"),
        ("gate", r"gate_proj|w1|wi_0"),
        ("up", r"up_proj|fc1|fc_in|c_fc|w3|wi|wi_1|intermediate\.dense|lin1|dense_h_to_4h"),
        ("down", r"down_proj|fc2|fc_out|mlp\.c_proj|w2|mlp\.Wo|DenseReluDense\.wo|output\.dense|lin2|dense_4h_to_h"),
    )
)
ROLES = (*dict.fromkeys(role for role, _ in _ROLES), "lm_head", "embedding")
"""The roles that a selector may name."""


@dataclass(frozen=True)
class Place:
    """Where in the network a weight stands; None for what could not be told."""

    layer: int | None
    role: str | None
    recognised_by: str
    """What told: `structure`, `node name`, `weight name`, `module scopes` or `nothing`."""


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
