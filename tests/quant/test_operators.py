"""What ONNX Runtime's operators read from our bytes is what `dequantize` says, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import quant_reference as reference
from onnx import TensorProto, helper, numpy_helper

from onnx_tailor.quant import BlockFormat, Quantized, dequantize, quantize

_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
SHAPES = [(1, 1), (5, 31), (17, 100), (3, 300), (16, 256), (2, 784)]
"""Rows and K: single weights, odd, padded, odd and even numbers of blocks, more than one tile of lanes."""


def _weights(rows: int, k: int, dtype: str) -> np.ndarray:
    random = np.random.default_rng(rows * k)
    return (random.standard_normal((rows, k)) * np.exp(random.standard_normal((rows, 1)))).astype(dtype)


def _run(
    operator: str, first: list[onnx.TensorProto], result: Quantized, kind: str, attributes: dict[str, int]
) -> np.ndarray:
    """Run one operator whose inputs are all constant."""
    tensors = [*first]
    names = [tensor.name for tensor in first]
    for name, array in (("scales", result.scales), ("zero_points", result.zero_points)):
        if array is not None:
            tensors.append(numpy_helper.from_array(array, name))
            names.append(name)
    node = helper.make_node(operator, names, ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", _TYPES[kind], None)], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


@pytest.mark.parametrize("kind", _TYPES)
@pytest.mark.parametrize("fmt", reference.FORMATS, ids=reference.name)
def test_matmul_nbits_computes_what_dequantize_says(fmt, kind):
    fmt = BlockFormat(fmt.bits, fmt.block_size, fmt.symmetric, kind)
    for rows, k in SHAPES:
        result = quantize(_weights(rows, k, kind), fmt, "k_quant")
        identity = numpy_helper.from_array(np.eye(k, dtype=kind), "a")
        codes = numpy_helper.from_array(result.codes, "b")
        attributes = {"K": k, "N": rows, "bits": fmt.bits, "block_size": fmt.block_size, "accuracy_level": 0}
        out = _run("MatMulNBits", [identity, codes], result, kind, attributes)
        assert np.array_equal(out.T, dequantize(result, k, fmt).astype(kind)), (rows, k)


@pytest.mark.parametrize("kind", _TYPES)
@pytest.mark.parametrize("fmt", reference.FORMATS, ids=reference.name)
def test_gather_block_quantized_computes_what_dequantize_says(fmt, kind):
    fmt = BlockFormat(fmt.bits, fmt.block_size, fmt.symmetric, kind)
    for rows, k in SHAPES:
        result = quantize(_weights(rows, k, kind), fmt, "rtn")
        codes = numpy_helper.from_array(result.codes.reshape(rows, -1), "data")  # K padded to whole blocks
        ids = np.arange(rows)[::-1].copy()
        attributes = {"bits": fmt.bits, "block_size": fmt.block_size, "gather_axis": 0, "quantize_axis": 1}
        out = _run("GatherBlockQuantized", [codes, numpy_helper.from_array(ids, "ids")], result, kind, attributes)
        assert np.array_equal(out[:, :k], dequantize(result, k, fmt).astype(kind)[ids]), (rows, k)
