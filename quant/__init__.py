"""Numeric kernels of block-wise weight quantization; knows nothing of ONNX."""

from onnx_tailor.quant.format import Bits, BlockFormat, ErrorSums, Method, NonFiniteError, Quantized
from onnx_tailor.quant.quantize import dequantize, error_sums, quantize, weighted_error

__all__ = [
    "Bits",
    "BlockFormat",
    "ErrorSums",
    "Method",
    "NonFiniteError",
    "Quantized",
    "dequantize",
    "error_sums",
    "quantize",
    "weighted_error",
]
