"""Numeric kernels of block-wise weight quantization; knows nothing of ONNX."""

from onnx_tailor.quant.format import Bits, BlockFormat, Method, NonFiniteError, Quantized
from onnx_tailor.quant.quantize import dequantize, quantize, weighted_error

__all__ = [
    "Bits",
    "BlockFormat",
    "Method",
    "NonFiniteError",
    "Quantized",
    "dequantize",
    "quantize",
    "weighted_error",
]
