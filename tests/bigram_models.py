"""Small language models, made by hand, whose outputs numpy can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

V, K = 37, 8


def weights(seed: int = 0, scale: float = 1.0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((V, K), np.float32)
    return table, (scale * rng.standard_normal((K, V))).astype(np.float32)


def _save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def bigram(
    path: Path,
    table: npt.NDArray[Any],
    head: npt.NDArray[Any],
    *,
    logits: str = "logits",
    extra_input: str | None = None,
) -> Path:
    """logits[b, s] = table[ids[b, s]] @ head, in the weights' type."""
    element = helper.np_dtype_to_tensor_dtype(table.dtype)
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])]
    if extra_input:
        inputs.append(helper.make_tensor_value_info(extra_input, TensorProto.FLOAT, ["b", 3]))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "head"], [logits]),
        ],
        "bigram",
        inputs,
        [helper.make_tensor_value_info(logits, element, ["b", "s", head.shape[1]])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(head, "head")],
    )
    return _save(graph, path)


def with_past(path: Path, table: npt.NDArray[Any], head: npt.NDArray[Any], *, bug: bool = False) -> Path:
    """The logits are those of the running sum of embeddings; the cache holds one head of embeddings.

    `bug` leaves the cache's first place out of the sum, which a prefill from an empty cache does not show.
    """
    past = helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, ["batch_size", 1, "past", K])
    present = helper.make_tensor_value_info("present.0.key", TensorProto.FLOAT, ["batch_size", 1, "total", K])
    read = "cropped" if bug else past.name
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Unsqueeze", ["embedded", "one"], ["new"]),
        helper.make_node("Concat", [past.name, "new"], ["present.0.key"], axis=2),
        helper.make_node("Slice", [past.name, "one", "end", "two"], ["cropped"]),
        helper.make_node("ReduceSum", [read, "two"], ["before"], keepdims=1),
        helper.make_node("CumSum", ["new", "axis"], ["running"]),
        helper.make_node("Add", ["running", "before"], ["sum"]),
        helper.make_node("Squeeze", ["sum", "one"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]
    constants = {"one": [1], "two": [2], "end": [1 << 40]}
    initializers = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array(2, np.int64), "axis"))
    initializers += [numpy_helper.from_array(table, "table"), numpy_helper.from_array(head, "head")]
    graph = helper.make_graph(
        nodes,
        "with_past",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "s"]), past],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "s", V]), present],
        initializers,
    )
    return _save(graph, path)


def encoder(path: Path, table: npt.NDArray[Any]) -> Path:
    """Yields hidden states and no logits."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "encoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "s", K])],
        [numpy_helper.from_array(table, "table")],
    )
    return _save(graph, path)
