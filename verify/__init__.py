"""Run two models side by side on the same tokens and measure the difference."""

from onnx_tailor.verify.compare import Comparison, OutputDifference, compare
from onnx_tailor.verify.session import LanguageModel
from onnx_tailor.verify.tokens import Tokens, from_npy, from_text, random_tokens

__all__ = [
    "Comparison",
    "LanguageModel",
    "OutputDifference",
    "Tokens",
    "compare",
    "from_npy",
    "from_text",
    "random_tokens",
]
