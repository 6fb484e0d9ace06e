"""Sound models to begin with: small, one for each way in which a file can hold its weights and its nodes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import attention_model
import handmade
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DATA = "model.onnx.data"
SIZES = {"rows": 32, "columns": 32}
"""Of the token tables: 4 KiB, large enough to lie outside."""


@dataclass(frozen=True)
class Seed:
    """One model."""

    name: str
    model: bytes
    data: bytes
    """The content of its data file; some bytes where it needs none."""


@cache
def seeds() -> tuple[Seed, ...]:
    """Return the models."""
    plain = handmade.decoder_proto(layers=1, **SIZES)
    protos = {
        "inside": plain,
        "half": handmade.decoder_proto(layers=1, dtype=np.float16, **SIZES),
        "nested": _nested(handmade.decoder_proto(layers=1, **SIZES), depth=2),
        "constants": _constants(handmade.decoder_proto(layers=2, **SIZES)),
        "functions": _functions(handmade.decoder_proto(layers=1, **SIZES)),
        "loop": _loop(handmade.decoder_proto(layers=1, **SIZES)),
        "integers": _integers(handmade.decoder_proto(layers=1, **SIZES)),
        "attention": _attention("split"),
        "fused attention": _attention("gqa"),
    }
    found = [Seed(name, proto.SerializeToString(), bytes(range(256)) * 400) for name, proto in protos.items()]
    return (*found, _outside(), *_quantized())


def _nested(model: onnx.ModelProto, depth: int) -> onnx.ModelProto:
    """Add an If in an If, each branch of which is a decoder of its own."""
    for level in range(depth):
        inner = model.graph if level else handmade.decoder_proto(layers=1, seed=3, **SIZES).graph
        branch = onnx.GraphProto()
        branch.CopyFrom(inner)
        del branch.input[:]
        prefix = f"i{level}."
        for node in branch.node:
            node.input[:] = [each if each in {"input_ids", "flag"} else each and prefix + each for each in node.input]
            node.output[:] = [prefix + each for each in node.output]
        for tensor in branch.initializer:
            tensor.name = prefix + tensor.name
        for value in (*branch.output, *branch.value_info):
            value.name = prefix + value.name
        outer = handmade.decoder_proto(layers=1, **SIZES)
        outer.graph.node.append(
            helper.make_node(
                "If", ["flag"], [f"other{level}"], name=f"if{level}", then_branch=branch, else_branch=branch
            )
        )
        outer.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
        model = outer
    return model


def _constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Move the weights into Constant nodes, one of them as single values."""
    for tensor in list(model.graph.initializer):
        if tensor.name.startswith("lm_head"):
            tensor.float_data.extend(numpy_helper.to_array(tensor).reshape(-1).tolist())
            tensor.ClearField("raw_data")
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    return model


def _functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the product of a layer into a function that another function calls."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    inner = helper.make_function(
        "local", "Inner", ["x", "w"], ["y"], [helper.make_node("MatMul", ["x", "w"], ["y"])], opsets
    )
    call = helper.make_node("Inner", ["x", "w"], ["m"], domain="local")
    outer = helper.make_function(
        "local", "Outer", ["x", "w"], ["y"], [call, helper.make_node("Add", ["x", "m"], ["y"])], opsets
    )
    node = model.graph.node[1]
    node.op_type, node.domain = "Outer", "local"
    model.functions.extend([inner, outer])
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def _loop(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let a Loop multiply by a weight of the graph around it."""
    weight = model.graph.initializer[1].name
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("MatMul", ["state", weight], ["next"], name="in_loop"),
        ],
        "body",
        [
            info("step", TensorProto.INT64, []),
            info("going", TensorProto.BOOL, []),
            info("state", TensorProto.FLOAT, None),
        ],
        [info("goes_on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None)],
    )
    model.graph.node.insert(1, helper.make_node("Loop", ["count", "", "h0"], ["looped"], name="loop", body=body))
    model.graph.node[2].input[0] = "looped"
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.int64), "count"))
    return model


def _integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store a weight as integers behind a DequantizeLinear, and some of other types beside it."""
    codes = np.arange(1024, dtype=np.int8).reshape(32, 32)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(codes, "codes"),
            numpy_helper.from_array(np.float32(0.01), "scale"),
            helper.make_tensor("words", TensorProto.STRING, [3], [b"a", b"b", b"c"]),
            helper.make_tensor("bits", TensorProto.INT4, [5], [1, -2, 3, -4, 5]),
            helper.make_tensor("halves", TensorProto.FLOAT16, [3], np.array([1, 2, 3], np.float16)),
            helper.make_tensor("none", TensorProto.FLOAT, [0, 4], []),
        ]
    )
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["codes", "scale"], ["weight"], name="dequantize"))
    model.graph.node[2].input[1] = "weight"
    model.opset_import[0].version = 21
    return model


def _attention(divide: attention_model.Divide) -> onnx.ModelProto:
    layer = attention_model.Layer(columns=32, heads=2, kv_heads=1, size=8, inner=16, divide=divide)
    with tempfile.TemporaryDirectory() as scratch:
        return onnx.load(layer.save(Path(scratch) / "layer.onnx"))


def _outside() -> Seed:
    with tempfile.TemporaryDirectory() as scratch:
        path = handmade.decoder(Path(scratch) / "model.onnx", layers=1, data=DATA, **SIZES)
        return Seed("outside", path.read_bytes(), (path.parent / DATA).read_bytes())


def _quantized() -> list[Seed]:
    """Return what our own runs write."""
    from onnx_tailor import pipeline, recipe

    found = []
    for name in ("rtn", "tie-table-8bit"):
        with tempfile.TemporaryDirectory() as scratch:
            path = handmade.decoder(Path(scratch) / "in" / "model.onnx", layers=1, data=DATA, **SIZES)
            pipeline.run(recipe.load(name), path, Path(scratch) / "out")
            out, data = Path(scratch) / "out", Path(scratch) / "out" / DATA
            content = data.read_bytes() if data.exists() else bytes(4096)
            found.append(Seed(f"made by {name}", (out / "model.onnx").read_bytes(), content))
    return found
