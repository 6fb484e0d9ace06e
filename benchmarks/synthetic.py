"""Write a model of any size: a token table and square projections, in float32 with random values."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 2048


def main() -> None:
    """Write the model to the path given first, with about as many weights as the second argument says."""
    path, weights = Path(sys.argv[1]), int(sys.argv[2])
    layers = max(1, weights // WIDTH**2 - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32) / np.float32(WIDTH**0.5)
    values = np.empty_like(random)
    tensors, nodes, offset = [], [helper.make_node("Gather", ["table", "ids"], ["x0"], "embed_tokens")], 0
    with (path.parent / f"{path.name}.data").open("wb") as file:
        for number, name in enumerate(("table", *(f"w{i}" for i in range(layers)))):
            np.multiply(random, np.float32(1 + number / 4096), out=values)  # no two alike, or they would be stored once
            file.write(values.data)
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", f"{path.name}.data"), ("offset", offset), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset += values.nbytes
    nodes += [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"project{i}") for i in range(layers)]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "tokens"])
    out = helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, [1, "tokens", WIDTH])
    graph = helper.make_graph(nodes, "synthetic", [ids], [out], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


if __name__ == "__main__":
    main()
