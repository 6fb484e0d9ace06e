"""What a report tells of each candidate weight: its place, its size, and what in the recipe decided over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx_tailor.graph.meaning.candidates import Candidate
from onnx_tailor.passes.selectors import NodeRule, Setting, first_match

__all__ = ["RULE", "explain"]

RULE = "rule"
"""The detail that holds the path of the deciding option inside the pass's options, as ["nodes", "role:down"]."""


def explain(candidate: Candidate, nodes: Mapping[str, Setting | NodeRule], otherwise: str) -> dict[str, Any]:
    """Return the details of a candidate, before a rewrite takes its nodes' names.

    `otherwise` is the option that decides where no pattern of `nodes` matches.
    """
    pattern = first_match(nodes, candidate)
    view, where = candidate.matrix.view, candidate.place
    return {
        "weight": candidate.matrix.name,
        "shape": list(candidate.shape),
        "dtype": str(view.dtype).lower(),
        "bytes": view.nbytes,
        "role": where.role,
        "layer": where.layer,
        RULE: ["nodes", pattern] if pattern is not None else [otherwise],
    }
