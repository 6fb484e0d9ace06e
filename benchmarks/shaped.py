"""Write a decoder of a known model's shape with random weights, streamed to disk: `python shaped.py llama|phi FOLDER`.

The graph is in the form in which the ONNX Runtime GenAI model builder writes decoders: packed query-key-value
projections, GroupQueryAttention with its rotary embedding and key-value cache inside, fused norms. It runs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["LLAMA", "PHI", "Shape", "write"]

MICROSOFT = "com.microsoft"
_CHUNK = 1 << 22
"""Elements that are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What to build, in float16."""

    hidden: int
    vocabulary: int
    layers: int
    inner: int
    """Width of the feed-forward part."""
    heads: int
    kv_heads: int
    head_size: int
    head: Literal["copy", "transpose"]
    """Whether the output head reads a copy [K, V] of its own, or the table [V, K] behind a Transpose."""
    packed_gate_up: bool
    """Whether gate and up are one projection, as in Phi."""
    rotary: float = 1.0
    """Share of a head that is turned by its position."""
    context: int = 2048

    @property
    def packed_rows(self) -> int:
        """Rows of the packed query-key-value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_size


LLAMA = Shape(
    hidden=2048,
    vocabulary=128256,
    layers=16,
    inner=8192,
    heads=32,
    kv_heads=8,
    head_size=64,
    head="copy",
    packed_gate_up=False,
)
"""Llama 3.2 1B, whole."""
PHI = Shape(
    hidden=3072,
    vocabulary=200064,
    layers=2,
    inner=8192,
    heads=24,
    kv_heads=8,
    head_size=128,
    head="transpose",
    packed_gate_up=True,
    rotary=0.75,
)
"""Phi-4-mini with 2 of its 32 layers: the rest repeats them, and the table dominates."""


def write(shape: Shape, folder: Path) -> Path:
    """Write model.onnx and its data file into `folder`, which is made, and return the model's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    with (folder / "model.onnx.data").open("w+b") as data:
        model = _Builder(shape, data).model()
    path.write_bytes(model.SerializeToString())  # the weights are in the data file
    return path


@dataclass
class _Builder:
    shape: Shape
    data: BinaryIO
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def model(self) -> onnx.ModelProto:
        shape = self.shape
        self._weight("model.embed_tokens.weight", shape.vocabulary, shape.hidden, 0.02)
        self._lengths()
        self._rotary()
        hidden = self._node("Gather", ["model.embed_tokens.weight", "input_ids"], "/model/embed_tokens/Gather")
        normed, skip = self._norm(hidden, "/model/layers.0/input_layernorm"), hidden
        for layer in range(shape.layers):
            name = f"/model/layers.{layer}"
            mixed = self._attention(normed, layer)
            normed, skip = self._norm_of_sum(skip, mixed, f"{name}/post_attention_layernorm")
            after = f"/model/layers.{layer + 1}/" + (
                "input_layernorm" if layer + 1 < shape.layers else "final_norm_layernorm"
            )
            normed, skip = self._norm_of_sum(skip, self._feed_forward(normed, layer), after)
        self._head(normed)
        graph = helper.make_graph(self.nodes, "main_graph", self._inputs(), self._outputs(), self.tensors)
        imports = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        info, ids = helper.make_tensor_value_info, TensorProto.INT64
        return [
            info("input_ids", ids, ["batch_size", "sequence_length"]),
            info("attention_mask", ids, ["batch_size", "total_sequence_length"]),
            *self._cache("past_key_values", "past_sequence_length"),
        ]

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        places = ["batch_size", "sequence_length", self.shape.vocabulary]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT16, places)
        return [logits, *self._cache("present", "total_sequence_length")]

    def _cache(self, name: str, length: str) -> list[onnx.ValueInfoProto]:
        places = ["batch_size", self.shape.kv_heads, length, self.shape.head_size]
        return [
            helper.make_tensor_value_info(f"{name}.{layer}.{which}", TensorProto.FLOAT16, places)
            for layer in range(self.shape.layers)
            for which in ("key", "value")
        ]

    def _lengths(self) -> None:
        """Derive from the mask what GroupQueryAttention wants: each row's last place, and the whole length."""
        name = "/model/attn_mask_reformat"
        self._small(f"{name}/axis", np.array([1], np.int64))
        self._small(f"{name}/one", np.array(1, np.int64))
        total = self._node("ReduceSum", ["attention_mask", f"{name}/axis"], f"{name}/ReduceSum", keepdims=0)
        last = self._node("Sub", [total, f"{name}/one"], f"{name}/Sub")
        self._node("Cast", [last], f"{name}/Cast", output="last_place", to=TensorProto.INT32)
        length = self._node(
            "Gather", [self._node("Shape", ["attention_mask"], f"{name}/Shape"), f"{name}/one"], f"{name}/Gather"
        )
        self._node("Cast", [length], f"{name}/Cast_1", output="whole_length", to=TensorProto.INT32)

    def _rotary(self) -> None:
        turned = int(self.shape.head_size * self.shape.rotary)
        angles = np.outer(np.arange(self.shape.context), 10000.0 ** (-np.arange(0, turned, 2) / turned))
        self._small("cos_cache", np.cos(angles).astype(np.float16))
        self._small("sin_cache", np.sin(angles).astype(np.float16))

    def _attention(self, value: str, layer: int) -> str:
        shape, name = self.shape, f"/model/layers.{layer}/attn"
        packed = self._linear(value, f"{name}/qkv_proj", shape.hidden, shape.packed_rows)
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        output = f"{name}/GroupQueryAttention/output_0"
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [packed, "", "", *past, "last_place", "whole_length", "cos_cache", "sin_cache"],
                [output, *present],
                name=f"{name}/GroupQueryAttention",
                domain=MICROSOFT,
                num_heads=shape.heads,
                kv_num_heads=shape.kv_heads,
                do_rotary=1,
            )
        )
        return self._linear(output, f"{name}/o_proj", shape.heads * shape.head_size, shape.hidden)

    def _feed_forward(self, value: str, layer: int) -> str:
        shape, name = self.shape, f"/model/layers.{layer}/mlp"
        if shape.packed_gate_up:
            packed = self._linear(value, f"{name}/gate_up_proj", shape.hidden, 2 * shape.inner)
            gate, up = f"{name}/Split/output_0", f"{name}/Split/output_1"
            self.nodes.append(
                helper.make_node("Split", [packed], [gate, up], name=f"{name}/Split", axis=-1, num_outputs=2)
            )
        else:
            gate = self._linear(value, f"{name}/gate_proj", shape.hidden, shape.inner)
            up = self._linear(value, f"{name}/up_proj", shape.hidden, shape.inner)
        active = self._node(
            "Mul", [gate, self._node("Sigmoid", [gate], f"{name}/act_fn/Sigmoid")], f"{name}/act_fn/Mul"
        )
        return self._linear(
            self._node("Mul", [active, up], f"{name}/Mul"), f"{name}/down_proj", shape.inner, shape.hidden
        )

    def _head(self, value: str) -> None:
        shape, table = self.shape, "model.embed_tokens.weight"
        if shape.head == "transpose":
            weight = self._node("Transpose", [table], "/lm_head/Transpose", perm=[1, 0])
        else:
            weight = "lm_head.MatMul.weight"
            self._transposed_table(weight)
        self._node("MatMul", [value, weight], "/lm_head/MatMul", output="logits")

    def _norm(self, value: str, name: str) -> str:
        self._small(f"{name[1:].replace('/', '.')}.weight", np.ones(self.shape.hidden, np.float16))
        weight = self.tensors[-1].name
        return self._node(
            "SimplifiedLayerNormalization", [value, weight], f"{name}/LayerNorm", axis=-1, epsilon=1e-5, stash_type=1
        )

    def _norm_of_sum(self, skip: str, value: str, name: str) -> tuple[str, str]:
        """Return the norm of a sum, and the sum itself."""
        self._small(f"{name[1:].replace('/', '.')}.weight", np.ones(self.shape.hidden, np.float16))
        outputs = [f"{name}/output_0", "", "", f"{name}/output_3"]
        self.nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [skip, value, self.tensors[-1].name],
                outputs,
                name=f"{name}/SkipLayerNorm",
                domain=MICROSOFT,
                epsilon=1e-5,
            )
        )
        return outputs[0], outputs[3]

    def _linear(self, value: str, name: str, columns: int, rows: int) -> str:
        weight = f"{name[1:].replace('/', '.')}.MatMul.weight"
        self._weight(weight, columns, rows, columns**-0.5)
        return self._node("MatMul", [value, weight], f"{name}/MatMul")

    def _node(self, op: str, inputs: list[str], name: str, *, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{name}/output_0"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def _small(self, name: str, value: npt.NDArray[Any]) -> None:
        self.tensors.append(numpy_helper.from_array(value, name))

    def _weight(self, name: str, rows: int, columns: int, deviation: float) -> None:
        """Write normally distributed values [rows, columns]."""
        self._outside(name, rows, columns)
        step = max(1, _CHUNK // columns)
        for start in range(0, rows, step):
            values = self.random.standard_normal((min(step, rows - start), columns), np.float32)
            self.data.write((values * np.float32(deviation)).astype(np.float16).data)

    def _transposed_table(self, name: str) -> None:
        """Write the table, which the data file begins with, once more as [K, V]."""
        rows, columns = self.shape.vocabulary, self.shape.hidden
        self.data.flush()
        table = np.memmap(self.data, np.float16, "r", shape=(rows, columns))  # type: ignore[call-overload]
        self._outside(name, columns, rows)
        self.data.seek(0, 2)
        step = max(1, _CHUNK // rows)
        for start in range(0, columns, step):
            self.data.write(np.ascontiguousarray(table[:, start : start + step].T).data)

    def _outside(self, name: str, rows: int, columns: int) -> None:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=(rows, columns))
        tensor.data_location = TensorProto.EXTERNAL
        places = {"location": "model.onnx.data", "offset": self.data.tell(), "length": 2 * rows * columns}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)


if __name__ == "__main__":
    print(write({"llama": LLAMA, "phi": PHI}[sys.argv[1]], Path(sys.argv[2])))
