"""ONNX Runtime's k-quant, operation by operation, so that the search knows where it ends.

onnxruntime/python/tools/quantization/neural_compressor/weight_only.py, after llama.cpp's make_qkx2_quants. It chooses
among lines scale * code + minimum by float32 sums, and where two are nearly as good the last bit decides; hence no
multiplication is fused with an addition here, and sums are taken in numpy's order.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import numpy as np

from onnx_tailor.quant.compiled import inlined, kernel
from onnx_tailor.quant.lanes import WIDTH, at_least_zero, fabs, lesser_size, load, rint, splat, sqrt, store, where

_F = np.float32
_STEPS = 20
_CHAINS = 8
_RUN = 128
"""numpy sums up to 128 numbers in 8 chains, whose ends it adds in pairs; more in halves."""
_HALF = 4
"""Chains at a time, so that all sums of `_encode` stay in registers."""


@inlined
def _square(x, i, part):
    """Add x^2."""
    value = load(x, i * WIDTH)
    return part + value * value


@kernel
def weigh_by_size(x, w):
    """Fill `w` with what an error of each weight costs where nothing is known: rms(block) + |x|, as in llama.cpp."""
    n = len(x) // WIDTH
    total = splat(_F(0))
    for run in range(0, n, _RUN):
        ends = splat(_F(0))
        for half in range(0, _CHAINS, _HALF):
            a = b = c = d = splat(_F(0))
            for i in range(run + half, min(run + _RUN, n), _CHAINS):
                a, b, c, d = _square(x, i, a), _square(x, i + 1, b), _square(x, i + 2, c), _square(x, i + 3, d)
            ends = ends + ((a + b) + (c + d))
        total = total + ends
    rms = sqrt(total / splat(_F(n)))
    for i in range(0, len(x), WIDTH):
        store(w, i, rms + fabs(load(x, i)))


@inlined
def _weight(x, w, i, parts):
    """Add w and w * x."""
    weight = load(w, i * WIDTH)
    return parts[0] + weight, parts[1] + weight * load(x, i * WIDTH)


@kernel
def _sum_weights(x, w):
    """Return the sums of w and of w * x."""
    n = len(x) // WIDTH
    none = splat(_F(0))
    sum_w = sum_x = none
    for run in range(0, n, _RUN):
        ends_w = ends_x = none
        for half in range(0, _CHAINS, _HALF):
            a = b = c = d = (none, none)
            for i in range(run + half, min(run + _RUN, n), _CHAINS):
                a, b = _weight(x, w, i, a), _weight(x, w, i + 1, b)
                c, d = _weight(x, w, i + 2, c), _weight(x, w, i + 3, d)
            ends_w = ends_w + ((a[0] + b[0]) + (c[0] + d[0]))
            ends_x = ends_x + ((a[1] + b[1]) + (c[1] + d[1]))
        sum_w, sum_x = sum_w + ends_w, sum_x + ends_x
    return sum_w, sum_x


@inlined
def _code(x, w, i, inverse, minimum, maxq, codes, parts):
    """Write one code; add w * code, w * code^2 and w * code * x."""
    value = load(x, i * WIDTH)
    code = rint(lesser_size(at_least_zero(inverse * (value - minimum)), maxq))
    store(codes, i * WIDTH, code)
    weighted = load(w, i * WIDTH) * code
    return parts[0] + weighted, parts[1] + weighted * code, parts[2] + weighted * value


@inlined
def _encode(x, w, inverse, minimum, maxq, codes):
    """Write the codes round((x - minimum) * inverse); return the sums of w * code, w * code^2 and w * code * x."""
    n = len(x) // WIDTH
    none = splat(_F(0))
    total = square = dot = none
    for run in range(0, n, _RUN):
        ends = (none, none, none)
        for half in range(0, _CHAINS, _HALF):
            a = b = c = d = (none, none, none)
            for i in range(run + half, min(run + _RUN, n), _CHAINS):
                a = _code(x, w, i, inverse, minimum, maxq, codes, a)
                b = _code(x, w, i + 1, inverse, minimum, maxq, codes, b)
                c = _code(x, w, i + 2, inverse, minimum, maxq, codes, c)
                d = _code(x, w, i + 3, inverse, minimum, maxq, codes, d)
            ends = (
                ends[0] + ((a[0] + b[0]) + (c[0] + d[0])),
                ends[1] + ((a[1] + b[1]) + (c[1] + d[1])),
                ends[2] + ((a[2] + b[2]) + (c[2] + d[2])),
            )
        total, square, dot = total + ends[0], square + ends[1], dot + ends[2]
    return total, square, dot


@inlined
def _rest(x, w, codes, i, scale, minimum, part):
    """Add the weighted error of one code."""
    rest = (scale * load(codes, i * WIDTH) + minimum) - load(x, i * WIDTH)
    return part + load(w, i * WIDTH) * (rest * rest)


@inlined
def _line_error(x, w, codes, scale, minimum):
    """Return the weighted error of the line scale * code + minimum."""
    n = len(x) // WIDTH
    error = splat(_F(0))
    for run in range(0, n, _RUN):
        ends = splat(_F(0))
        for half in range(0, _CHAINS, _HALF):
            a = b = c = d = splat(_F(0))
            for i in range(run + half, min(run + _RUN, n), _CHAINS):
                a = _rest(x, w, codes, i, scale, minimum, a)
                b = _rest(x, w, codes, i + 1, scale, minimum, b)
                c = _rest(x, w, codes, i + 2, scale, minimum, c)
                d = _rest(x, w, codes, i + 3, scale, minimum, d)
            ends = ends + ((a + b) + (c + d))
        error = error + ends
    return error


@inlined
def no_line():
    """Return something of the type of each of the results of `ort_lines`."""
    none = splat(_F(0))
    return none, none


@inlined
def _begin(x, w, low, high, maxq, codes):
    """Return what all steps need (sums of w and w * x, `high`), and the state before them, as `_end` returns it."""
    inverse = maxq / (high - low)
    scale = splat(_F(1)) / inverse
    _encode(x, w, inverse, low, maxq, codes)
    sum_w, sum_x = _sum_weights(x, w)
    return (sum_w, sum_x, high), (_line_error(x, w, codes, scale, low), scale, low)


@inlined
def _fit(sums, always):
    """Return the least-squares scale and minimum for codes with these sums."""
    total, square, dot = sums
    sum_w, sum_x, _ = always
    determinant = sum_w * square - total * total
    return (sum_w * dot - sum_x * total) / determinant, (square * sum_x - total * dot) / determinant


@inlined
def _end(state, error, line):
    """Return the better of two (error, scale, minimum); the first if equal."""
    improves = error < state[0]
    return where(improves, error, state[0]), where(improves, line[0], state[1]), where(improves, line[1], state[2])


@kernel
def ort_lines(first, second, levels):
    """Follow ONNX Runtime's k-quant, in each of two groups of blocks, until it rounds the zero point.

    A group is (x, w, low, high, scratch space for as many numbers as x has). While one group waits for the end of a
    sum, the processor works on the other. Returns of each group the line's scale and minimum.
    """
    maxq = splat(_F(levels))
    x1, w1, low1, high1, codes1 = first
    x2, w2, low2, high2, codes2 = second
    always1, state1 = _begin(x1, w1, low1, high1, maxq, codes1)
    always2, state2 = _begin(x2, w2, low2, high2, maxq, codes2)
    for step in range(_STEPS):
        factor = splat(_F(-1 + 0.1 * step + levels))
        sums1 = _encode(x1, w1, factor / (high1 - state1[2]), state1[2], maxq, codes1)
        sums2 = _encode(x2, w2, factor / (high2 - state2[2]), state2[2], maxq, codes2)
        line1, line2 = _fit(sums1, always1), _fit(sums2, always2)
        error1 = _line_error(x1, w1, codes1, line1[0], line1[1])
        error2 = _line_error(x2, w2, codes2, line2[0], line2[1])
        state1, state2 = _end(state1, error1, line1), _end(state2, error2, line2)
    return (state1[1], state1[2]), (state2[1], state2[2])
