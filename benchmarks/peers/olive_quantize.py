"""Olive's pass on one file: METHOD MODEL OUTPUT. 4 bits, blocks of 32; runs in an environment that has olive-ai."""

import sys
from pathlib import Path

from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.kquant_quantization import OnnxKQuantQuantization
from olive.passes.onnx.rtn_quantization import OnnxBlockWiseRtnQuantization

method, model, out = sys.argv[1:]
kind, options = {
    "k_quant": (OnnxKQuantQuantization, {}),
    "rtn": (OnnxBlockWiseRtnQuantization, {"is_symmetric": False}),
}[method]
quantize = create_pass_from_dict(
    kind,
    {"bits": 4, "block_size": 32, "save_as_external_data": True, "all_tensors_to_one_file": True, **options},
    disable_search=True,
)
made = Path(quantize.run(ONNXModelHandler(model), out).model_path)
if made != Path(out):  # one of the passes leaves the suffix out
    made.rename(out)
