"""Part of the pass `quantize`: where zero points are floats, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from onnx_tailor.errors import OptionError
from onnx_tailor.graph.meaning.candidates import Candidate
from onnx_tailor.passes.selectors import NodeRule
from onnx_tailor.quant import BlockFormat
from onnx_tailor.quant.format import FLOAT_POINT_BITS

if TYPE_CHECKING:
    from onnx_tailor.passes.quantize import Quantize

__all__ = ["PointType", "are_floats", "check_points", "instead_of_floats", "is_gathered"]

PointType = Literal["integer", "float"]


def check_points(options: Quantize) -> None:
    """See that nothing in the recipe contradicts the zero points that it asks for.

    Raises:
        OptionError: it asks for float zero points together with what has none, or takes integers alone.
    """
    for key, bits, symmetric in _asked(options):
        if symmetric:
            raise OptionError("`symmetric: true` stores no zero points, so they cannot be floats", key=key)
        if options.format == "qdq":
            raise OptionError("`format: qdq` takes integer zero points alone: DequantizeLinear has no others", key=key)
        if isinstance(bits, int) and bits not in FLOAT_POINT_BITS:
            raise OptionError(
                f"{bits} bits take integer zero points alone: ONNX Runtime's CPU kernel of MatMulNBits fails on floats",
                key=key,
            )


def _asked(options: Quantize) -> Iterator[tuple[tuple[str, ...], object, bool]]:
    """Yield where float zero points are asked for, and with which bits, and whether without zero points."""
    if options.zero_points == "float":
        yield ("zero_points",), options.bits, options.symmetric
    for pattern, rule in options.nodes.items():
        if isinstance(rule, NodeRule) and rule.zero_points == "float":
            symmetric = options.symmetric if rule.symmetric is None else rule.symmetric
            yield ("nodes", pattern, "zero_points"), rule.bits or options.bits, symmetric


def are_floats(points: PointType, bits: object, *, symmetric: bool, gathered: bool) -> bool:
    """Whether a weight of so many bits gets float zero points where `points` are asked for."""
    return points == "float" and bits in FLOAT_POINT_BITS and not symmetric and not gathered


def is_gathered(candidate: Candidate) -> bool:
    """Whether rows or matrices of a weight are gathered by an operator, which takes integers alone."""
    return bool(candidate.tables or candidate.stacks)


def instead_of_floats(points: PointType, fmt: BlockFormat, candidate: Candidate) -> str:
    """Return why zero points are integers though `points` asks for floats, as a remark; "" where they are as asked."""
    if points == "integer" or fmt.float_points or fmt.symmetric:
        return ""
    if is_gathered(candidate):
        return "zero points stay integers, since rows are gathered, which no operator does with float ones"
    return f"zero points stay integers, since MatMulNBits' CPU kernel fails on float ones of {fmt.bits} bits"
