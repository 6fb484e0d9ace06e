"""One decoder layer made by hand, its projections packed, in every form in which exporters write them.

The packed matrices are known, so that a test can say which rows each part has to hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_tailor.quant import Quantized

Array = npt.NDArray[Any]
Multiply = Literal["matmul", "gemm", "fused", "transpose", "nbits"]
Divide = Literal["split", "equal_split", "slice", "heads", "places", "unbind", "interleaved", "stepped", "gqa", "none"]
ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
BIG = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Layer:
    """What to build: x -> qkv -> attention -> o_proj -> gate_up -> down_proj -> y."""

    columns: int = 64
    heads: int = 4
    kv_heads: int = 2
    size: int = 16
    """Of one head."""
    inner: int = 48
    dtype: str = "float32"
    multiply: Multiply = "matmul"
    """`transpose`: [N, K] behind a Transpose; `nbits`: quantized already, by `quantized`."""
    divide: Divide = "split"
    bias: bool = False
    order: str = "qkv"
    """The order of the parts in the packed matrix."""
    opset: int = 18
    names: tuple[str, str] = ("model.layers.3.self_attn.qkv_proj", "model.layers.3.mlp.gate_up_proj")
    quantized: dict[str, Quantized] = field(default_factory=dict)
    bits: int = 4
    block_size: int = 16
    flat: bool = False
    """Scales and zero points have one dimension."""
    float_points: bool = False
    """Zero points are floats, one for each block."""
    rotary: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each part, in the packed order."""
        own = {"q": self.heads * self.size, "k": self.kv_heads * self.size, "v": self.kv_heads * self.size}
        return {role: own[role] for role in self.order}

    def weights(self) -> dict[str, Array]:
        """Return all matrices [N, K] and biases [N] in the layer's type."""
        random = np.random.default_rng(11)
        packed = sum(self.sizes.values())
        shapes: dict[str, tuple[int, ...]] = {
            "qkv": (packed, self.columns),
            "o": (self.columns, self.heads * self.size),
            "gate_up": (2 * self.inner, self.columns),
            "down": (self.columns, self.inner),
            "qkv.bias": (packed,),
            "gate_up.bias": (2 * self.inner,),
        }
        return {n: (random.standard_normal(s, np.float32) / 8).astype(self.dtype) for n, s in shapes.items()}

    def save(self, path: Path) -> Path:
        """Write the layer with its weights beside it."""
        onnx.save(
            _Builder(self).model(), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=256
        )
        return path

    def feeds(self, length: int, past: int = 0) -> dict[str, Array]:
        """Return inputs for `length` tokens behind `past` ones."""
        random = np.random.default_rng(5)
        found = {"x": random.standard_normal((1, length, self.columns), np.float32).astype(self.dtype)}
        for name in ("past_key", "past_value"):
            shape = (1, self.kv_heads, past, self.size)
            found[name] = (random.standard_normal(shape, np.float32) / 2).astype(self.dtype)
        return found


class _Builder:
    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.values = layer.weights()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        layer, kind = self.layer, ELEMENT[self.layer.dtype]
        attended = self._attention()
        hidden = self._node("MatMul", [attended, self._store("o_proj.weight", self.values["o"].T)], "o_proj")
        gate, up = self._gate_up(hidden)
        active = self._node("Mul", [gate, self._node("Sigmoid", [gate], "sigmoid")], "silu")
        inner = self._node("Mul", [active, up], "gated")
        self._node("MatMul", [inner, self._store("down_proj.weight", self.values["down"].T)], "down_proj", output="y")
        cache = [1, layer.kv_heads, "past", layer.size]
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "layer",
            [info("x", kind, [1, "length", layer.columns])]
            + [info(name, kind, cache) for name in ("past_key", "past_value")],
            [info("y", kind, [1, "length", layer.columns])]
            + [info(name, kind, [1, layer.kv_heads, "total", layer.size]) for name in ("present_key", "present_value")],
            self.initializers,
        )
        imports = [helper.make_opsetid("", layer.opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)

    def _attention(self) -> str:
        layer = self.layer
        packed = self._packed("x", "qkv", layer.names[0])
        if layer.divide == "gqa":
            return self._fused(packed)
        parts = self._divided(packed, list(layer.sizes.values()), layer.divide)
        heads = {}
        for role, part in zip(layer.order, parts, strict=True):
            count = layer.heads if role == "q" else layer.kv_heads
            shape = self._ints([0, 0, count, layer.size])
            heads[role] = self._node(
                "Transpose",
                [self._node("Reshape", [part, shape], f"{role}_heads")],
                f"{role}_turned",
                perm=[0, 2, 1, 3],
            )
        key = self._node("Concat", ["past_key", heads["k"]], "key", output="present_key", axis=2)
        value = self._node("Concat", ["past_value", heads["v"]], "value", output="present_value", axis=2)
        key, value = self._repeated(key, "k"), self._repeated(value, "v")
        turned = self._node("Transpose", [key], "key_turned", perm=[0, 1, 3, 2])
        scores = self._node("MatMul", [heads["q"], turned], "scores")
        scaled = self._node("Mul", [scores, self._store("scale", np.array(0.25, layer.dtype))], "scaled")
        mixed = self._node("MatMul", [self._node("Softmax", [scaled], "softmax", axis=-1), value], "mixed")
        back = self._node("Transpose", [mixed], "back", perm=[0, 2, 1, 3])
        return self._node("Reshape", [back, self._ints([0, 0, layer.heads * layer.size])], "joined")

    def _repeated(self, value: str, role: str) -> str:
        layer = self.layer
        if layer.heads == layer.kv_heads:
            return value
        if layer.opset < 13:
            deep = self._node("Unsqueeze", [value], f"{role}_deep", axes=[2])
        else:
            deep = self._node("Unsqueeze", [value, self._ints([2])], f"{role}_deep")
        sizes = self._ints([1, 1, layer.heads // layer.kv_heads, 1, 1])
        wide = self._node("Expand", [deep, sizes], f"{role}_wide")
        return self._node("Reshape", [wide, self._ints([0, layer.heads, -1, layer.size])], f"{role}_repeated")

    def _fused(self, packed: str) -> str:
        layer = self.layer
        shape = self._node("Shape", ["past_key"], "past_shape")
        past = self._node("Gather", [shape, self._ints(2)], "past_length")
        length = self._node("Gather", [self._node("Shape", ["x"], "x_shape"), self._ints(1)], "x_length")
        total = self._node("Add", [past, length], "total_length")
        last = self._node("Sub", [total, self._ints([1])], "last")
        as_int = [self._node("Cast", [value], f"{value}_int", to=TensorProto.INT32) for value in (last, total)]
        inputs = [packed, "", "", "past_key", "past_value", *as_int]
        if layer.rotary:
            angles = np.arange(32)[:, None] / 10.0 ** np.arange(layer.size // 2)
            inputs += [self._store(f.__name__, f(angles).astype(layer.dtype)) for f in (np.cos, np.sin)]
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                inputs,
                ["attended", "present_key", "present_value"],
                name="attention",
                domain="com.microsoft",
                num_heads=layer.heads,
                kv_num_heads=layer.kv_heads,
                do_rotary=int(layer.rotary),
            )
        )
        return "attended"

    def _gate_up(self, hidden: str) -> list[str]:
        layer = self.layer
        packed = self._packed(hidden, "gate_up", layer.names[1])
        plain: Divide = layer.divide if layer.divide in {"slice", "stepped"} else "split"
        return self._divided(packed, [layer.inner, layer.inner], plain)

    def _packed(self, value: str, key: str, name: str) -> str:
        """Write one packed projection; return its output, the bias added."""
        layer, weight, bias = self.layer, self.values[key], self.values[f"{key}.bias"] if self.layer.bias else None
        rows, columns = weight.shape
        if layer.multiply == "nbits":
            return self._nbits(value, key, name, bias)
        if layer.multiply == "gemm":
            flat = self._node("Reshape", [value, self._ints([-1, columns])], f"{name}/flat")
            operands = [flat, self._store(f"{name}.weight", weight)]
            operands += [self._store(f"{name}.bias", bias)] if bias is not None else []
            result = self._node("Gemm", operands, f"{name}/Gemm", transB=1)
            return self._node("Reshape", [result, self._ints([1, -1, rows])], f"{name}/restored")
        if layer.multiply == "fused":
            stored = self._store(f"{name}.weight", weight)
            result = self._node("FusedMatMul", [value, stored], f"{name}/MatMul", domain="com.microsoft", transB=1)
        elif layer.multiply == "transpose":
            stored = self._store(f"{name}.weight", weight)
            turned = self._node("Transpose", [stored], f"{name}/Transpose", perm=[1, 0])
            result = self._node("MatMul", [value, turned], f"{name}/MatMul")
        else:
            result = self._node("MatMul", [value, self._store(f"{name}.weight", weight.T)], f"{name}/MatMul")
        if bias is None:
            return result
        return self._node("Add", [self._store(f"{name}.bias", bias), result], f"{name}/Add")

    def _nbits(self, value: str, key: str, name: str, bias: Array | None) -> str:
        layer, found = self.layer, self.layer.quantized[key]
        rows, columns = self.values[key].shape
        scales, points = found.scales, found.zero_points
        if layer.float_points:
            points = np.full(scales.shape, 2 ** (layer.bits - 1) - 0.5, layer.dtype)
        if layer.flat:
            scales, points = scales.reshape(-1), None if points is None else points.reshape(-1)
        inputs = [value, self._store(f"{name}.MatMul.weight_Q4", found.codes)]
        inputs.append(self._store(f"{name}.MatMul.weight_scales", scales))
        inputs.append("" if points is None else self._store(f"{name}.MatMul.weight_zero_points", points))
        inputs += ["", self._store(f"{name}.bias", bias)] if bias is not None else []
        return self._node(
            "MatMulNBits",
            inputs,
            f"{name}/MatMulNBits",
            domain="com.microsoft",
            K=columns,
            N=rows,
            bits=layer.bits,
            block_size=layer.block_size,
        )

    def _divided(self, packed: str, sizes: list[int], how: Divide) -> list[str]:
        ends = np.cumsum(sizes)
        names = [f"{packed}_part_{i}" for i in range(len(sizes))]
        if how in {"slice", "stepped"}:
            for i, (size, end) in enumerate(zip(sizes, ends, strict=True)):
                step = len(sizes) if how == "stepped" else 1
                start, stop = (i, BIG) if how == "stepped" else (end - size, end if i + 1 < len(sizes) else BIG)
                bounds = [self._ints([n]) for n in (start, stop, -1, step)]
                self._node("Slice", [packed, *bounds], names[i], output=names[i])
            return names
        if how in {"places", "unbind"}:  # [..., parts, size]: one place each
            deep = self._node("Reshape", [packed, self._ints([0, 0, len(sizes), -1])], f"{packed}_deep")
            if how == "unbind":
                deep = self._node("Transpose", [deep], f"{packed}_first", perm=[2, 0, 1, 3])
            for i, name in enumerate(names):
                index = i if how == "unbind" else [i]  # a vector keeps the dimension
                self._node("Gather", [deep, self._ints(index)], name, output=name, axis=0 if how == "unbind" else 2)
            return names
        axis, tail = -1, None
        if how == "heads":  # [..., heads and kv heads, size]
            packed = self._node("Reshape", [packed, self._ints([0, 0, -1, self.layer.size])], f"{packed}_deep")
            axis, tail = 2, self.layer.size
        if how == "interleaved":  # [..., size, parts]: each head holds its own parts
            packed = self._node("Reshape", [packed, self._ints([0, 0, -1, len(sizes)])], f"{packed}_deep")
            axis, sizes = 3, [1] * len(sizes)
        lengths = [size // (tail or 1) for size in sizes]
        self._split(packed, lengths, names, axis, equal=how == "equal_split")
        return names

    def _split(self, packed: str, lengths: list[int], names: list[str], axis: int, *, equal: bool) -> None:
        attributes: dict[str, Any] = {"axis": axis}
        inputs = [packed]
        if equal:
            attributes |= {"num_outputs": len(names)} if self.layer.opset >= 18 else {}
        elif self.layer.opset >= 13:
            inputs.append(self._ints(lengths))
        else:
            attributes["split"] = lengths
        self.nodes.append(helper.make_node("Split", inputs, names, name=f"{packed}_split", **attributes))

    def _store(self, name: str, value: Array) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def _ints(self, values: list[int] | int) -> str:
        return self._store(f"ints_{len(self.initializers)}", np.array(values, np.int64))

    def _node(
        self, op: str, inputs: list[str], name: str, *, output: str | None = None, domain: str = "", **attributes: Any
    ) -> str:
        output = output or f"{name}_output"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, domain=domain, **attributes))
        return output
