"""Sizes that the inputs and outputs leave symbolic, read from the graph or from its config."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import onnx

from onnx_tailor.graph.file.places import home
from onnx_tailor.verify.embedder import INPUT
from onnx_tailor.verify.feeds import IDS
from onnx_tailor.weights.protobuf import read_skeleton

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["head_size", "is_over_vocabulary", "positions", "reads_tokens", "table_rows", "windows"]

_GATHERS = frozenset({"Gather", "GatherBlockQuantized"})
_POSITIONS = ("max_position_embeddings", "max_target_positions", "n_positions")
_PASSING = frozenset(
    {"Add", "Cast", "Clip", "Expand", "Flatten", "Identity", "Max", "Min", "Reshape", "Slice", "Squeeze"}
)
_PASSING |= {"Sub", "Tile", "Transpose", "Unsqueeze", "Where"}
"""What carries ids, as `graph.tables.token_tables` knows it."""


def head_size(path: Path) -> int | None:
    """Return the size of one attention head, or None where neither the graph nor a config tells it.

    GroupQueryAttention's packed query is [b, s, (heads + 2 * kv heads) * head size], its separate one
    [b, s, heads * head size]; otherwise genai_config.json or config.json beside the model are read.
    """
    graph = _load(path)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    for node in graph.node:
        dims = shapes.get(node.input[0]) if node.op_type == "GroupQueryAttention" else None
        if dims and dims[-1].dim_value:
            attributes = {each.name: each.i for each in node.attribute}
            queries, keys = attributes["num_heads"], attributes["kv_num_heads"]
            return int(dims[-1].dim_value // (queries if node.input[1] else queries + 2 * keys))
    decoder = _json(home(path) / "genai_config.json").get("model", {}).get("decoder", {})
    config = _json(home(path) / "config.json")
    stated: object = decoder.get("head_size") or config.get("head_dim")
    if isinstance(stated, int):
        return stated
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None


def windows(path: Path) -> dict[str, int]:
    """Return the positions that each state of a sliding window must hold, by the name of the input.

    GroupQueryAttention with sliding_window_cache 1 keeps a buffer of at least local_window_size positions, full or
    not, instead of the tokens before.
    """
    found: dict[str, int] = {}
    for node in _load(path).node:
        attributes = {each.name: each.i for each in node.attribute}
        if node.op_type == "GroupQueryAttention" and attributes.get("sliding_window_cache"):
            found |= dict.fromkeys(node.input[3:5], attributes["local_window_size"])
    return found


def positions(path: Path) -> int | None:
    """Return the number of tokens that the config.json beside the model says it takes at most; None where none does."""
    config = _json(home(path) / "config.json")
    stated = [config.get(key) for key in _POSITIONS]
    return min((each for each in stated if isinstance(each, int) and each > 1), default=None)


def reads_tokens(path: Path) -> bool:
    """Whether what the model computes depends on token ids, which an encoder of sounds or images does not take.

    Raises:
        ModelError: the file cannot be read.
    """
    return any(each.name in {*IDS, INPUT} for each in read_skeleton(path).graph.input)


def table_rows(path: Path) -> int | None:
    """Return the rows of the table that the token ids gather from, or None where there is no such table."""
    graph = _load(path)
    ids = {each.name for each in graph.input if each.name in IDS}
    return _rows(graph, ids, {})


def _rows(graph: onnx.GraphProto, ids: set[str], outer: dict[str, int]) -> int | None:
    """Look for the Gather in a graph, and in the graphs inside it, where `ids` and the tables `outer` are known."""
    rows = outer | {each.name: int(each.dims[0]) for each in graph.initializer if len(each.dims) >= 2}
    for node in graph.node:  # in topological order, as ONNX demands
        for attribute in node.attribute:
            found = _rows(attribute.g, ids, rows) if attribute.type == onnx.AttributeProto.GRAPH else None
            if found is not None:
                return found
        if node.op_type in _PASSING and ids.intersection(node.input):
            ids.update(node.output)
        elif node.op_type in _GATHERS and node.input[1] in ids and node.input[0] in rows:
            return rows[node.input[0]]
    return None


def is_over_vocabulary(shape: Sequence[object], rows: int | None) -> bool:
    """Whether an output of this shape, dimensions None or words where they are open, predicts ids of a table.

    Labels are far fewer than its `rows`; a padded table has a few rows more than are predicted, or fewer.
    """
    size = shape[-1] if shape else None
    return len(shape) == 3 and (rows is None or not isinstance(size, int) or 2 * size > rows)


def _load(path: Path) -> onnx.GraphProto:
    return read_skeleton(path).graph


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
