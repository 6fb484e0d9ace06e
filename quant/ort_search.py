"""ONNX Runtime's k-quant, operation by operation, so that the search knows where it ends.

onnxruntime/python/tools/quantization/neural_compressor/weight_only.py, after llama.cpp's make_qkx2_quants. It chooses
among lines scale * code + minimum by float32 sums, and where two are nearly as good the last bit decides; hence no
multiplication is fused with an addition here, and sums are taken in numpy's order.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import numpy as np

from onnx_tailor.quant.compiled import kernel
from onnx_tailor.quant.lanes import WIDTH, fabs, greater, lesser, load, rint, splat, sqrt, store, where

_F = np.float32
_STEPS = 20
_CHAINS = 8
_RUN = 128
"""numpy sums up to 128 numbers in 8 chains, whose ends it adds in pairs; more in halves."""
SCRATCH = 3 * _CHAINS * WIDTH
"""Elements of the scratch space beside one for each weight."""


@kernel
def _add_ends(scratch, at):
    """Add the ends of chains in numpy's order."""
    r = at * _CHAINS * WIDTH
    first = load(scratch, r) + load(scratch, r + WIDTH)
    second = load(scratch, r + 2 * WIDTH) + load(scratch, r + 3 * WIDTH)
    third = load(scratch, r + 4 * WIDTH) + load(scratch, r + 5 * WIDTH)
    fourth = load(scratch, r + 6 * WIDTH) + load(scratch, r + 7 * WIDTH)
    return (first + second) + (third + fourth)


@kernel
def weigh_by_size(x, w, scratch):
    """Fill `w` with what an error of each weight costs where nothing is known: rms(block) + |x|, as in llama.cpp."""
    n = len(x) // WIDTH
    total = splat(_F(0))
    for run in range(0, n, _RUN):
        for chain in range(_CHAINS):
            part = splat(_F(0))
            for i in range(run + chain, min(run + _RUN, n), _CHAINS):
                value = load(x, i * WIDTH)
                part = part + value * value
            store(scratch, chain * WIDTH, part)
        total = total + _add_ends(scratch, 0)
    rms = sqrt(total / splat(_F(n)))
    for i in range(0, len(x), WIDTH):
        store(w, i, rms + fabs(load(x, i)))


@kernel
def _sum_weights(x, w, scratch):
    """Return the sums of w and of w * x."""
    n = len(x) // WIDTH
    sum_w = sum_x = splat(_F(0))
    for run in range(0, n, _RUN):
        for chain in range(_CHAINS):
            part_w = part_x = splat(_F(0))
            for i in range(run + chain, min(run + _RUN, n), _CHAINS):
                weight = load(w, i * WIDTH)
                part_w, part_x = part_w + weight, part_x + weight * load(x, i * WIDTH)
            store(scratch, chain * WIDTH, part_w)
            store(scratch, (chain + _CHAINS) * WIDTH, part_x)
        sum_w, sum_x = sum_w + _add_ends(scratch, 0), sum_x + _add_ends(scratch, 1)
    return sum_w, sum_x


@kernel
def _encode(x, w, inverse, minimum, maxq, codes, scratch):
    """Write the codes round((x - minimum) * inverse); return the sums of w * code, w * code^2 and w * code * x."""
    n = len(x) // WIDTH
    total = square = dot = splat(_F(0))
    for run in range(0, n, _RUN):
        for chain in range(_CHAINS):
            part_total = part_square = part_dot = splat(_F(0))
            for i in range(run + chain, min(run + _RUN, n), _CHAINS):
                value = load(x, i * WIDTH)
                code = rint(lesser(greater(inverse * (value - minimum), splat(_F(0))), maxq))
                store(codes, i * WIDTH, code)
                weighted = load(w, i * WIDTH) * code
                part_total, part_square = part_total + weighted, part_square + weighted * code
                part_dot = part_dot + weighted * value
            store(scratch, chain * WIDTH, part_total)
            store(scratch, (chain + _CHAINS) * WIDTH, part_square)
            store(scratch, (chain + 2 * _CHAINS) * WIDTH, part_dot)
        total, square = total + _add_ends(scratch, 0), square + _add_ends(scratch, 1)
        dot = dot + _add_ends(scratch, 2)
    return total, square, dot


@kernel
def _line_error(x, w, codes, scale, minimum, scratch):
    """Return the weighted error of the line scale * code + minimum."""
    n = len(x) // WIDTH
    error = splat(_F(0))
    for run in range(0, n, _RUN):
        for chain in range(_CHAINS):
            part = splat(_F(0))
            for i in range(run + chain, min(run + _RUN, n), _CHAINS):
                rest = (scale * load(codes, i * WIDTH) + minimum) - load(x, i * WIDTH)
                part = part + load(w, i * WIDTH) * (rest * rest)
            store(scratch, chain * WIDTH, part)
        error = error + _add_ends(scratch, 0)
    return error


@kernel
def ort_line(x, w, low, high, levels, scratch):
    """Return the scale and minimum that ONNX Runtime's k-quant finds before it rounds the zero point."""
    maxq = splat(_F(levels))
    codes = scratch[SCRATCH:]
    sum_w, sum_x = _sum_weights(x, w, scratch)
    inverse, minimum = maxq / (high - low), low
    scale = splat(_F(1)) / inverse
    _encode(x, w, inverse, low, maxq, codes, scratch)
    least = _line_error(x, w, codes, scale, low, scratch)
    for step in range(_STEPS):
        inverse = splat(_F(-1 + 0.1 * step + levels)) / (high - minimum)
        total, square, dot = _encode(x, w, inverse, minimum, maxq, codes, scratch)
        determinant = sum_w * square - total * total
        fitted = (sum_w * dot - sum_x * total) / determinant
        start = (square * sum_x - total * dot) / determinant
        error = _line_error(x, w, codes, fitted, start, scratch)
        improves = error < least
        least, scale = where(improves, error, least), where(improves, fitted, scale)
        minimum = where(improves, start, minimum)
    return scale, minimum
