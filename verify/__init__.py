"""Run two models side by side on the same tokens and measure the difference."""

from onnx_tailor.verify.blame import Blame, Share, blame
from onnx_tailor.verify.compare import Comparison, OutputDifference, compare, compare_each, jsonable
from onnx_tailor.verify.greedy import Greedy
from onnx_tailor.verify.limits import LIMITS, Limit, exceeded, parse_limits
from onnx_tailor.verify.session import LanguageModel
from onnx_tailor.verify.tokens import BUNDLED, Tokens, from_npy, from_text, random_tokens
from onnx_tailor.verify.trace import Point, Trace, trace
from onnx_tailor.verify.worst import WorstToken

__all__ = [
    "BUNDLED",
    "LIMITS",
    "Blame",
    "Comparison",
    "Greedy",
    "LanguageModel",
    "Limit",
    "OutputDifference",
    "Point",
    "Share",
    "Tokens",
    "Trace",
    "WorstToken",
    "blame",
    "compare",
    "compare_each",
    "exceeded",
    "from_npy",
    "from_text",
    "jsonable",
    "parse_limits",
    "random_tokens",
    "trace",
]
