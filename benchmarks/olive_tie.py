"""Tie a table and its head with Olive's TieWordEmbeddings: `python olive_tie.py MODEL FOLDER`, where olive-ai is.

The model is one of memory.py's. Olive looks for the input `input_ids`, and compares values, so a float head is made the
table's transpose first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from olive.passes.onnx.graph_surgeries import TieWordEmbeddings
from onnx import numpy_helper


def main(source: Path, folder: Path) -> None:
    """Write FOLDER/model.onnx and its data.

    Raises:
        RuntimeError: Olive left the two apart.
    """
    model = onnx.load(source)
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["input_ids" if name == "ids" else name for name in node.input]
    graph.input[0].name = "input_ids"
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    if "table" in arrays:
        table = numpy_helper.to_array(arrays["table"])
        arrays["head"].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(table.T), "head"))
    tied = TieWordEmbeddings()(model)
    head = next(node for node in reversed(tied.graph.node) if node.op_type in {"Gemm", "MatMul", "MatMulNBits"})
    made = {output for node in tied.graph.node for output in node.output}
    if head.op_type == "MatMul" or (head.op_type == "MatMulNBits" and head.input[1] not in made):
        raise RuntimeError("TieWordEmbeddings changed nothing")
    folder.mkdir()
    onnx.save(tied, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
