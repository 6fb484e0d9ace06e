"""Part of the pass `quantize`: the weights that stay as they are whatever their form would be."""

from __future__ import annotations

from typing import Literal

from onnx_tailor.graph.meaning.candidates import Candidate
from onnx_tailor.passes.selectors import NodeRule, Setting


def left_alone(candidate: Candidate, rule: NodeRule, bits: Setting | Literal["auto"]) -> str | None:
    """Return why a weight stays as it is whatever its form would be, or None where it need not."""
    if bits in {"float", "skip"}:
        return f"left in float, as {'`nodes`' if rule.bits else '`bits`'} says"
    if candidate.place.role == "router" and rule.bits is None:
        return "a router decides which experts run, so it is left in float; `nodes: {'role:router': 8}` quantizes it"
    if candidate.others:
        return f"{candidate.others[0]} reads it too and needs its floats, so that it would be stored twice"
    return None
