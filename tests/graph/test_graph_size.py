"""The work on a graph grows as its nodes do. Counted are calls of functions, which are the same on a busy machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import graph_size
import pytest

from onnx_tailor import pipeline, recipe
from onnx_tailor.lint.rules import lint

SMALL, TIMES = 130, 3


def calls(path: Path, kind: str, nodes: int) -> tuple[int, int]:
    """Return how many nodes the graph has and how many calls inspect, lint and a dry run make together."""
    count = graph_size.write(path, kind, nodes)
    rtn = recipe.load("rtn")
    made = 0

    def note(frame: object, event: str, argument: Any) -> None:
        nonlocal made
        made += event in {"call", "c_call"}

    sys.setprofile(note)
    try:
        pipeline.inspect(path)
        lint(path, "cpu")
        pipeline.run(rtn, path, None, dry_run=True)
    finally:
        sys.setprofile(None)
    return count, made


@pytest.mark.parametrize("kind", graph_size.KINDS)
def test_twice_the_nodes_are_twice_the_work(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_size, "DEPTH", 4)  # the same in both, as deep as the small one can have
    calls(tmp_path / "first.onnx", kind, SMALL)  # imports and caches
    nodes, few = calls(tmp_path / "small.onnx", kind, SMALL)
    more_nodes, many = calls(tmp_path / "large.onnx", kind, TIMES * SMALL)
    assert many / few < 1.15 * more_nodes / nodes
