"""ONNX Runtime's MatMulNBitsQuantizer on one file: METHOD MODEL OUTPUT. 4 bits, blocks of 32, asymmetric."""

import sys

import onnx
from onnxruntime.quantization import matmul_nbits_quantizer as q

method, model, out = sys.argv[1:]
config = {"k_quant": q.KQuantWeightOnlyQuantConfig, "rtn": q.RTNWeightOnlyQuantConfig, "default": lambda: None}[
    method
]()
quantizer = q.MatMulNBitsQuantizer(onnx.load(model), bits=4, block_size=32, is_symmetric=False, algo_config=config)
quantizer.process()
quantizer.model.save_model_to_file(out, use_external_data_format=True)
