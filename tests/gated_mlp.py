"""A small model whose activations numpy can tell: two projections share an input, one has another, one is the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

V, K, M = 53, 24, 40
Arrays = dict[str, npt.NDArray[Any]]


def weights(seed: int = 0, dtype: npt.DTypeLike = np.float32) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"table": (V, K), "gate": (K, M), "up": (K, M), "down": (M, K), "head": (K, V)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def activations(w: Arrays, ids: npt.NDArray[np.int64]) -> Arrays:
    """The input of each projection, by the value's name in the graph; in float64."""
    hidden = w["table"].astype(np.float64)[ids]
    gated = np.tanh(hidden @ w["gate"]) * (hidden @ w["up"])
    return {"hidden": hidden, "gated": gated, "last": hidden + gated @ w["down"]}


def mlp(path: Path, w: Arrays, *, external: bool = False) -> Path:
    element = helper.np_dtype_to_tensor_dtype(w["table"].dtype)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"], name="embed"),
        helper.make_node("MatMul", ["hidden", "gate"], ["g"], name="layers.0/gate_proj"),
        helper.make_node("MatMul", ["hidden", "up"], ["u"], name="layers.0/up_proj"),
        helper.make_node("Tanh", ["g"], ["t"]),
        helper.make_node("Mul", ["t", "u"], ["gated"]),
        helper.make_node("MatMul", ["gated", "down"], ["d"], name="layers.0/down_proj"),
        helper.make_node("Add", ["hidden", "d"], ["last"]),
        helper.make_node("MatMul", ["last", "head"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", element, ["b", "s", V])],
        [numpy_helper.from_array(array, name) for name, array in w.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path
