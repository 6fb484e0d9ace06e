"""A sequence-to-sequence set made by hand: an encoder, and decoders that read its states or have none to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Array = npt.NDArray[Any]
WIDTH, VOCABULARY = 64, 300
WEIGHTS = ("table", "encoder.a", "encoder.b", "cross", "decoder.a", "decoder.b")
_IDS = ("input_ids", TensorProto.INT64, ["batch", "sequence"])
_LOGITS = ("logits", TensorProto.FLOAT, ["batch", "sequence", VOCABULARY])


def values(**scales: float) -> dict[str, Array]:
    """Return the weights [N, K] by name, each times what `scales` says of it, with `_` for a dot."""
    random = np.random.default_rng(11)
    shapes = {name: (VOCABULARY if name == "table" else WIDTH, WIDTH) for name in WEIGHTS}
    drawn = {name: random.standard_normal(shape, np.float32) / 7 for name, shape in shapes.items()}
    return {name: value * np.float32(scales.get(name.replace(".", "_"), 1)) for name, value in drawn.items()}


def save(folder: Path, **scales: float) -> Path:
    """Write `encoder_model`, `decoder_model` and `decoder_with_past_model` (which reads no states) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = values(**scales)
    encoder(folder / "encoder_model.onnx", weights)
    decoder(folder / "decoder_model.onnx", weights, reads=True)
    decoder(folder / "decoder_with_past_model.onnx", weights, reads=False)
    return folder


def encoder(path: Path, weights: Mapping[str, Array], *, keep: int = WIDTH) -> Path:
    """Write an encoder that yields `keep` of its features."""
    body = _Body(weights)
    hidden = body.layers(body.add("Gather", ["table", "input_ids"], "/embed/Gather"), ("encoder.a", "encoder.b"))
    if keep < WIDTH:
        hidden = body.add("Gather", [hidden, body.int64s(list(range(keep)))], "/keep/Gather", axis=2)
    shape = ("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", keep])
    return body.save(path, [_IDS], shape, hidden)


def decoder(path: Path, weights: Mapping[str, Array], *, reads: bool) -> Path:
    """Write a decoder, which adds the mean of the encoder's states to its own if it `reads` them."""
    body, inputs = _Body(weights), [_IDS]
    hidden = body.add("Gather", ["table", "input_ids"], "/model/embed/Gather")
    if reads:
        inputs.append(("encoder_hidden_states", TensorProto.FLOAT, ["batch", "positions", WIDTH]))
        mixed = body.linear("encoder_hidden_states", "cross", "/model/cross/MatMul")
        mean = body.add("ReduceMean", [mixed, body.int64s([1])], "/model/cross/Mean")
        hidden = body.add("Add", [hidden, mean], "/model/cross/Add")
    hidden = body.layers(hidden, ("decoder.a", "decoder.b"))
    turned = body.add("Transpose", ["table"], "/lm_head/Transpose", perm=[1, 0])
    return body.save(path, inputs, _LOGITS, body.add("MatMul", [hidden, turned], "/lm_head/MatMul"))


def listener(path: Path, weights: Mapping[str, Array]) -> Path:
    """Write an encoder of sounds, which takes no tokens."""
    body = _Body(weights)
    sounds = ("input_features", TensorProto.FLOAT, ["batch", WIDTH, 24])
    turned = body.add("Transpose", ["input_features"], "/encoder/Transpose", perm=[0, 2, 1])
    shape = ("last_hidden_state", TensorProto.FLOAT, ["batch", 24, WIDTH])
    return body.save(path, [sounds], shape, body.layers(turned, ("encoder.a", "encoder.b")))


def camera(path: Path, weights: Mapping[str, Array]) -> Path:
    """Write a file whose input nothing but an image fills."""
    body = _Body(weights)
    pixels = ("pixel_values", TensorProto.FLOAT, ["batch", "patches", WIDTH])
    shape = ("image_features", TensorProto.FLOAT, ["batch", "patches", WIDTH])
    return body.save(path, [pixels], shape, body.layers("pixel_values", ("encoder.a", "encoder.b")))


def logits(folder: Path, ids: Array) -> Array:
    """Return the logits of a set for ids [b, s], which its encoder and its decoder read."""
    states = _session(folder / "encoder_model.onnx").run(None, {"input_ids": ids})[0]
    feeds = {"input_ids": ids, "encoder_hidden_states": states}
    return np.asarray(_session(folder / "decoder_model.onnx").run(None, feeds)[0])


def _session(path: Path) -> Any:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


class _Body:
    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        if "table" in inputs:
            self.tensors["table"] = numpy_helper.from_array(self.weights["table"], "table")
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def int64s(self, numbers: list[int]) -> str:
        name = f"constant_{len(self.tensors)}"
        self.tensors[name] = numpy_helper.from_array(np.array(numbers, np.int64), name)
        return name

    def linear(self, value: str, weight: str, name: str) -> str:
        self.tensors[weight] = numpy_helper.from_array(np.ascontiguousarray(self.weights[weight].T), weight)
        return self.add("MatMul", [value, weight], name)

    def layers(self, hidden: str, names: tuple[str, ...]) -> str:
        """Add to the hidden states what each layer makes of them."""
        for number, weight in enumerate(names):
            base = f"/{weight.split('.')[0]}/layers.{number}"
            made = self.linear(hidden, weight, f"{base}/mlp/down_proj/MatMul")
            hidden = self.add("Add", [hidden, self.add("Tanh", [made], f"{base}/Tanh")], f"{base}/Add")
        return hidden

    def save(self, path: Path, inputs: list[Any], output: Any, value: str) -> Path:
        self.nodes.append(helper.make_node("Identity", [value], [output[0]], name="/output/Identity"))
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info(*each) for each in inputs],
            [helper.make_tensor_value_info(*output)],
            list(self.tensors.values()),
        )
        path.write_bytes(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
        )
        return path
