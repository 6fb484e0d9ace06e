"""Zero points that are floats: grids that need no code for zero, which MatMulNBits alone reads."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import numpy as np

from onnx_tailor.quant.compiled import inlined, kernel
from onnx_tailor.quant.grids import representable, stored
from onnx_tailor.quant.lanes import WIDTH, fabs, fma, greater, lesser, load, rint, splat, store, where

_F = np.float32
ROUNDS = 4
"""Times that codes give a grid and the grid gives codes; on Gemma 3 270M's weights more gain less than 0.2 %."""
_STARTS = 3
"""Ranges that are tried; 26 of them gain 0.4 % there."""


@inlined
def fractional(value, scale, inverse, zero, maxq):
    """Return the code nearest to `value` and what is left of it; the zero point need be no integer.

    The products are rounded one by one, as ONNX Runtime's CPU kernel does.
    """
    code = lesser(greater(rint(fma(value, inverse, zero)), splat(_F(0))), maxq)
    return code, value - (code * scale - zero * scale)


@kernel
def weigh_alike(w):
    """Let every weight cost the same."""
    for i in range(0, len(w), WIDTH):
        store(w, i, splat(_F(1)))


@kernel
def leave_out_padding(w, counts):
    """Let what lies behind the `counts[l]` weights of lane l cost nothing: no grid needs to hold a zero for it."""
    for lane in range(WIDTH):
        for i in range(counts[lane], len(w) // WIDTH):
            w[i * WIDTH + lane] = _F(0)


@kernel
def error_of(x, w, scale, zero, maxq):
    """Return the weighted error of a grid; that of nothing but zeros where its scale is 0."""
    usable = fabs(scale) > splat(_F(0))
    inverse = splat(_F(1)) / scale
    error = splat(_F(0))
    for i in range(0, len(x), WIDTH):
        value = load(x, i)
        _, rest = fractional(value, scale, inverse, zero, maxq)
        rest = where(usable, rest, value)
        error = fma(load(w, i) * rest, rest, error)
    return error


@kernel
def _range(x, w):
    """Return the least and the greatest of the weights that cost anything."""
    low, high = splat(_F(np.inf)), splat(_F(-np.inf))
    for i in range(0, len(x), WIDTH):
        value, counts = load(x, i), load(w, i) > splat(_F(0))
        low = where(counts, lesser(low, value), low)
        high = where(counts, greater(high, value), high)
    return low, high


@kernel
def _means(x, w, middle):
    """Return the sums of w and of w * (x - middle)."""
    total = first = splat(_F(0))
    for i in range(0, len(x), WIDTH):
        weight = load(w, i)
        total, first = total + weight, fma(weight, load(x, i) - middle, first)
    return total, first


@kernel
def _trial(x, w, scale, zero, maxq, middle):
    """Return the weighted error of a grid, and the sums of w * c, w * c^2 and w * c * y over the codes that it gives.

    c counts from the middle code and y from `middle`, so that the sums do not cancel each other.
    """
    inverse, half = splat(_F(1)) / scale, maxq * splat(_F(0.5))
    error = first = second = mixed = splat(_F(0))
    for i in range(0, len(x), WIDTH):
        value, weight = load(x, i), load(w, i)
        code, rest = fractional(value, scale, inverse, zero, maxq)
        error = fma(weight * rest, rest, error)
        level = code - half
        weighted = weight * level
        first, second = first + weighted, fma(weighted, level, second)
        mixed = fma(weighted, value - middle, mixed)
    return error, first, second, mixed


@kernel
def _fitted(sums, total, mean, maxq, middle, unit, inverse, kind):
    """Return scale and zero point, as stored, of the weighted least squares for the codes that `sums` stand for."""
    _, first, second, mixed = sums
    slope = (total * mixed - first * mean) / (total * second - first * first)
    scale = stored(slope, maxq, unit, inverse, kind)
    offset = fma(-scale, first, mean) / total + middle  # of the middle code
    return scale, representable(maxq * splat(_F(0.5)) - offset / scale, kind)


@inlined
def _keep(best, error, scale, zero, unit):
    """Return the better of two (error, scale, zero). A product that a float32 cannot hold makes no grid."""
    fits = fabs(scale * unit * zero) < splat(_F(2.0**127))
    improves = (error < best[0]) & fits & (fabs(scale) > splat(_F(0)))
    return where(improves, error, best[0]), where(improves, scale, best[1]), where(improves, zero, best[2])


@kernel
def refine(x, w, scale, zero, rounds, maxq, levels, unit, inverse, kind):
    """Return scale and zero point as stored, of less weighted error than the grid of an integer zero point, or that.

    The block's range on all codes is tried, and with `rounds` narrower ones, each fitted once. The best is fitted
    `rounds` times, each with new codes. Grids are judged as stored; infinities and NaN never win. `levels` is the
    greatest code.
    """
    low, high = _range(x, w)
    span = (high - low) / maxq
    best = error_of(x, w, scale, zero, maxq), scale, zero
    scale = stored(span, maxq, unit, inverse, kind)
    zero = representable(-low / scale, kind)
    best = _keep(best, error_of(x, w, scale, zero, maxq), scale, zero, unit)
    if not rounds:
        return best[1], best[2]
    middle = (low + high) * splat(_F(0.5))
    total, mean = _means(x, w, middle)
    narrowest, step = (0.85, 0.1) if levels > 3 else (0.5, 0.2)
    for t in range(_STARTS):
        scale = span * splat(_F(narrowest + step * t))
        zero = maxq * splat(_F(0.5)) - middle / scale
        sums = _trial(x, w, scale, zero, maxq, middle)
        scale, zero = _fitted(sums, total, mean, maxq, middle, unit, inverse, kind)
        best = _keep(best, error_of(x, w, scale, zero, maxq), scale, zero, unit)
    sums = _trial(x, w, best[1], best[2], maxq, middle)
    for _ in range(rounds):
        scale, zero = _fitted(sums, total, mean, maxq, middle, unit, inverse, kind)
        sums = _trial(x, w, scale, zero, maxq, middle)
        best = _keep(best, sums[0], scale, zero, unit)
    return best[1], best[2]
