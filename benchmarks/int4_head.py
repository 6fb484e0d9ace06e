"""Quantize Gemma's head as ONNX Runtime does, and leave the table in float: `python int4_head.py SOURCE FOLDER`.

SOURCE is an export whose head reads the table behind a Transpose. ONNX Runtime's quantizer passes such a head over, so
its matrix is written out first. About 9 GB of memory, all of it in ONNX Runtime's quantizer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as nbits


def main(source: Path, folder: Path) -> None:
    """Write model.onnx with a float Gather and a MatMulNBits for the head and every other projection."""
    model = onnx.load(source / "model.onnx")
    lay_open(model)
    quantizer = nbits.MatMulNBitsQuantizer(model, bits=4, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(folder / "model.onnx"), use_external_data_format=True)


def lay_open(model: onnx.ModelProto) -> None:
    """Give a head behind a Transpose a matrix of its own."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    (turned,) = [n for n in model.graph.node if n.op_type == "Transpose" and n.input[0] in tensors]
    values = numpy_helper.to_array(tensors[turned.input[0]]).T
    model.graph.initializer.append(numpy_helper.from_array(values.copy(), turned.output[0]))
    model.graph.node.remove(turned)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
