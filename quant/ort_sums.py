"""The sums over a block of which ONNX Runtime's k-quant makes its choice, to the last bit.

numpy takes them there in float32: no multiplication is fused with an addition, and all go in its order.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import numpy as np

from onnx_tailor.quant.compiled import inlined, kernel
from onnx_tailor.quant.lanes import WIDTH, at_least_zero, fabs, fma, lesser_size, load, rint, splat, sqrt, store

_F = np.float32
_CHAINS = 8
_RUN = 128
"""numpy sums up to 128 numbers in 8 chains, whose ends it adds in pairs; more in halves."""
_HALF = 4
"""Chains at a time, so that all sums stay in registers."""


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
def sum_weights(x, w):
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
def clipped(place, maxq):
    """Return the code nearest to a place on the grid."""
    return rint(lesser_size(at_least_zero(place), maxq))


@inlined
def rounded(place, _):
    """Return the code nearest to a place that no code is cut off from."""
    return rint(place)


@inlined
def _code(x, w, i, grid, maxq, clip, rest):
    """Return w * code, w * code^2 and w * code * x of one weight, and `rest` with its w * (code - place)^2 added."""
    inverse, minimum = grid
    value, weight = load(x, i * WIDTH), load(w, i * WIDTH)
    place = inverse * (value - minimum)
    code = clip(place, maxq)
    weighted, apart = weight * code, code - place
    return (weighted, weighted * code, weighted * value), fma(weight * apart, apart, rest)


@inlined
def _add(first, second):
    return first[0] + second[0], first[1] + second[1], first[2] + second[2]


@kernel
def sum_codes(x, w, grid, maxq, clip):
    """Return the sums of w * code, w * code^2, w * code * x and w * (code - place)^2; place = (x - minimum) * inverse.

    `grid` is (inverse, minimum), and `clip` gives codes for places. The last sum, in steps of the grid, is not in
    numpy's order, and that of w * code may be -0.
    """
    n = len(x) // WIDTH
    none = splat(_F(0))
    ends = total = (none, none, none)
    odd = even = none
    for run in range(0, n, _RUN):
        for half in range(0, _CHAINS, _HALF):
            i = run + half
            a, even = _code(x, w, i, grid, maxq, clip, even)
            b, odd = _code(x, w, i + 1, grid, maxq, clip, odd)
            c, even = _code(x, w, i + 2, grid, maxq, clip, even)
            d, odd = _code(x, w, i + 3, grid, maxq, clip, odd)
            for i in range(run + half + _CHAINS, min(run + _RUN, n), _CHAINS):
                found, even = _code(x, w, i, grid, maxq, clip, even)
                a = _add(a, found)
                found, odd = _code(x, w, i + 1, grid, maxq, clip, odd)
                b = _add(b, found)
                found, even = _code(x, w, i + 2, grid, maxq, clip, even)
                c = _add(c, found)
                found, odd = _code(x, w, i + 3, grid, maxq, clip, odd)
                d = _add(d, found)
            part = _add(_add(a, b), _add(c, d))
            ends = _add(ends, part) if half else part
        total = _add(total, ends) if run else ends
    return total[0], total[1], total[2], even + odd
