"""Run two models side by side on the same tokens and measure the difference."""

from onnx_tailor.verify.compare import Comparison, OutputDifference, compare, compare_each
from onnx_tailor.verify.greedy import Greedy
from onnx_tailor.verify.limits import LIMITS, Limit, exceeded, parse_limits
from onnx_tailor.verify.session import LanguageModel
from onnx_tailor.verify.tokens import BUNDLED, Tokens, from_npy, from_text, random_tokens
from onnx_tailor.verify.worst import WorstToken

__all__ = [
    "BUNDLED",
    "LIMITS",
    "Comparison",
    "Greedy",
    "LanguageModel",
    "Limit",
    "OutputDifference",
    "Tokens",
    "WorstToken",
    "compare",
    "compare_each",
    "exceeded",
    "from_npy",
    "from_text",
    "parse_limits",
    "random_tokens",
]
