"""Models made by hand for the tests: small, of known values, stored in any of the ways that exporters use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH = 96, 64


def table(seed: int = 0, *, rows: int = VOCABULARY, columns: int = WIDTH) -> npt.NDArray[np.float32]:
    """Return a token table [rows, columns]."""
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def decoder(
    path: Path,
    *,
    layers: int = 2,
    seed: int = 0,
    rows: int = VOCABULARY,
    columns: int = WIDTH,
    dtype: npt.DTypeLike = np.float32,
    data: str | None = "model.onnx.data",
    edit: Callable[[onnx.ModelProto], None] | None = None,
) -> Path:
    """Write a language model: logits = layers(E[ids]) @ E.T, with the head as a second copy of E, transposed.

    `data` names the file for its weights, None keeps them in the protobuf; `edit` changes the protobuf before that.
    """
    model = decoder_proto(layers=layers, seed=seed, rows=rows, columns=columns, dtype=dtype)
    if edit is not None:
        edit(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is not None:
        store_outside(model, path.parent / data)
    path.write_bytes(model.SerializeToString())
    return path


def decoder_proto(
    *, layers: int = 2, seed: int = 0, rows: int = VOCABULARY, columns: int = WIDTH, dtype: npt.DTypeLike = np.float32
) -> onnx.ModelProto:
    """Return the model of `decoder` with its weights inside."""
    embedding = table(seed, rows=rows, columns=columns).astype(dtype)
    rng = np.random.default_rng(seed + 1)
    weights = {"model.embed_tokens.weight": embedding}
    nodes = [helper.make_node("Gather", ["model.embed_tokens.weight", "input_ids"], ["h0"], name="/embed/Gather")]
    for i in range(layers):
        name = f"model.layers.{i}.mlp.down_proj.weight"
        weights[name] = (rng.standard_normal((columns, columns)) / columns).astype(dtype)
        nodes += [
            helper.make_node("MatMul", [f"h{i}", name], [f"m{i}"], name=f"/model/layers.{i}/mlp/down_proj/MatMul"),
            helper.make_node("Add", [f"h{i}", f"m{i}"], [f"h{i + 1}"], name=f"/model/layers.{i}/Add"),
        ]
    weights["lm_head.weight"] = np.ascontiguousarray(embedding.T)
    nodes.append(helper.make_node("MatMul", [f"h{layers}", "lm_head.weight"], ["logits"], name="/lm_head/MatMul"))
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", element, ["batch", "sequence", rows])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def store_outside(model: onnx.ModelProto, file: Path) -> None:
    """Move every initializer's bytes into `file`, one after the other."""
    with file.open("wb") as out:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            refer(tensor, location=file.name, offset=out.tell(), length=len(raw))
            out.write(raw)


def refer(tensor: onnx.TensorProto, **fields: object) -> None:
    """Let `tensor` refer to external data by `fields`, such as location, offset and length."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in fields.items():
        tensor.external_data.add(key=key, value=str(value))


def logits(path: Path, ids: npt.NDArray[np.int64] | None = None) -> npt.NDArray[Any]:
    """Run the model in ONNX Runtime and return its logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ids = np.arange(12, dtype=np.int64).reshape(2, 6) if ids is None else ids
    (result,) = session.run(["logits"], {"input_ids": ids})
    return np.asarray(result)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below `folder`, by name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def weight(model: onnx.ModelProto, name: str = "lm_head.weight") -> onnx.TensorProto:
    """Return a stored weight, the head's by default."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)
