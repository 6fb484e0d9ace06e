"""Numeric kernels of block-wise weight quantization; knows nothing of ONNX."""

from onnx_tailor.quant.format import Bits, BlockFormat, ErrorSums, Method, NonFiniteError, Quantized
from onnx_tailor.quant.gptq import gptq
from onnx_tailor.quant.hessian import Factor, Moments, factorize, fit_drift
from onnx_tailor.quant.quantize import dequantize, error_sums, quantize, weighted_error

__all__ = [
    "Bits",
    "BlockFormat",
    "ErrorSums",
    "Factor",
    "Method",
    "Moments",
    "NonFiniteError",
    "Quantized",
    "dequantize",
    "error_sums",
    "factorize",
    "fit_drift",
    "gptq",
    "quantize",
    "weighted_error",
]
