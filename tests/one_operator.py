"""One of ONNX Runtime's operators on a quantized weight, all inputs constant."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnx_tailor.quant import BlockFormat, Quantized

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
SHAPES = [(1, 1), (5, 31), (17, 100), (3, 300), (16, 256), (2, 784)]
"""Rows and K: single weights, odd, padded, odd and even numbers of blocks, more than one tile of lanes."""


def run_constant(
    operator: str, first: list[onnx.TensorProto], result: Quantized, kind: str, attributes: dict[str, int]
) -> np.ndarray:
    """Run one operator whose inputs are all constant; floats of another type than `kind` stand behind a Cast."""
    tensors = [*first]
    names = [tensor.name for tensor in first]
    nodes = []
    for name, array in (("scales", result.scales), ("zero_points", result.zero_points)):
        if array is not None:
            tensors.append(numpy_helper.from_array(array, name))
            names.append(name)
            if array.dtype != kind and array.dtype != np.uint8:
                names[-1] = f"{name}/{kind}"
                nodes.append(helper.make_node("Cast", [name], names[-1:], to=TYPES[kind]))
    nodes.append(helper.make_node(operator, names, ["y"], domain="com.microsoft", **attributes))
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", TYPES[kind], None)], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


def matmul_nbits(result: Quantized, fmt: BlockFormat, k: int, kind: str, level: int = 0) -> np.ndarray:
    """Return the weight [rows, K] that a MatMulNBits multiplies by, times an identity."""
    identity = numpy_helper.from_array(np.eye(k, dtype=kind), "a")
    codes = numpy_helper.from_array(result.codes, "b")
    rows = len(result.codes)
    attributes = {"K": k, "N": rows, "bits": fmt.bits, "block_size": fmt.block_size, "accuracy_level": level}
    return run_constant("MatMulNBits", [identity, codes], result, kind, attributes).T
