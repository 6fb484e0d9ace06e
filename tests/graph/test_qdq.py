"""QDQ weights as `inspect` and `lint` read them, held to what ONNX Runtime makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_tailor import pipeline
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.tables.qdq import find_qdq_weights
from onnx_tailor.lint.rules import lint

K, N, BLOCK = 256, 512, 32


def qdq(folder: Path, dtype: int, axis: int, op: str, *, block: int = BLOCK) -> Path:
    """Write x @ W or a Gather from W, with W [K, N] (axis 0) or [N, K] (axis 1) behind a DequantizeLinear."""
    bits = 4 if dtype in {TensorProto.INT4, TensorProto.UINT4} else 8
    shape = (K, N) if axis == 0 else (N, K)
    raw = np.random.default_rng(0).integers(0, 256, K * N * bits // 8, dtype=np.uint8).tobytes()
    scales = [n // block if i == axis else n for i, n in enumerate(shape)] if block else [shape[axis]]
    initializers = [
        helper.make_tensor("w", dtype, shape, raw, raw=True),
        helper.make_tensor("s", TensorProto.FLOAT, scales, np.full(scales, 0.01, np.float32)),
    ]
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["f"], name="/dq", axis=axis, block_size=block)]
    if op == "gather":
        nodes.append(helper.make_node("Gather", ["f", "ids"], ["y"], name="/gather"))
        value = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    else:
        name = "f"
        if axis == 1:
            nodes.append(helper.make_node("Transpose", ["f"], ["t"], perm=[1, 0]))
            name = "t"
        nodes.append(helper.make_node("MatMul", ["x", name], ["y"], name="/model/layers.0/mlp/up_proj/MatMul"))
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", K])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [value], [result], initializers)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "model.onnx"
    )
    return folder / "model.onnx"


@pytest.mark.parametrize("dtype", [TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8, TensorProto.UINT8])
@pytest.mark.parametrize(("axis", "op"), [(0, "matmul"), (1, "matmul"), (1, "gather")])
def test_what_is_fused(tmp_path: Path, dtype: int, axis: int, op: str) -> None:
    import onnxruntime as ort

    path = qdq(tmp_path, dtype, axis, op)
    (found,) = find_qdq_weights(load(path))
    assert (found.bits, found.block_size, found.axis) == (4 if dtype > 16 else 8, BLOCK, axis)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert found.becomes_matmul_nbits == ("DequantizeLinear" not in operators)
    notes = [finding for finding in lint(path, "cpu").findings if finding.rule == "qdq"]
    assert len(notes) == (not found.becomes_matmul_nbits)
    assert all(note.bytes == 4 * K * N for note in notes)


def test_inspect_shows_them(tmp_path: Path) -> None:
    (file,) = pipeline.inspect(qdq(tmp_path, TensorProto.UINT4, 0, "matmul")).files
    (shown,) = [each for each in file.projections if each.get("form") == "qdq"]
    assert (shown["weight"], shown["shape"], shown["bits"], shown["block_size"]) == ("w", [K, N], 4, BLOCK)
    assert shown["bytes"] == K * N // 2 + 4 * K * N // BLOCK


def test_a_scale_for_each_row(tmp_path: Path) -> None:
    (found,) = find_qdq_weights(load(qdq(tmp_path, TensorProto.INT8, 1, "matmul", block=0)))
    assert (found.block_size, found.becomes_matmul_nbits) == (0, False)
