"""k-quant: the search for the scale and zero point of each block, judged on the grid as it is stored."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import numpy as np

from onnx_tailor.quant.compiled import kernel
from onnx_tailor.quant.grids import better, cost, merit, merits, near, nearest, rtn, stored, trial, zero_point
from onnx_tailor.quant.lanes import (
    WIDTH,
    any_lane,
    bits,
    fabs,
    from_bits,
    greater,
    lesser,
    load,
    rint,
    splat,
    store,
    where,
)

_F, _U = np.float32, np.uint32


@kernel
def weigh_by_importance(w):
    """Scale each block's importance near one; where it is zero throughout, every weight costs the same."""
    largest = splat(_F(0))
    for i in range(0, len(w), WIDTH):
        largest = greater(largest, load(w, i))
    none = largest < splat(_F(2.0**-126))
    exponent = bits(largest) & splat(_U(255 << 23))
    exponent = where(exponent > splat(_U(253 << 23)), splat(_U(253 << 23)), exponent)
    inverse = from_bits(splat(_U(254 << 23)) - exponent)
    for i in range(0, len(w), WIDTH):
        store(w, i, where(none, splat(_F(1)), load(w, i) * inverse))


@kernel
def _keep(best, error, scale, zero):
    """Return the better of two (error, scale, zero); the first if equal."""
    improves = error < best[0]
    return where(improves, error, best[0]), where(improves, scale, best[1]), where(improves, zero, best[2])


_SINGLE = 15
"""The greatest of so few codes that rounding once is as good as always taking the nearest."""


@kernel
def _judge(best, x, w, scale, zero, levels, unit, inverse, kind):
    """Return the better of `best` (error, scale, zero) and a grid as stored."""
    maxq = splat(_F(levels))
    scale = stored(scale, maxq, unit, inverse, kind)
    if levels <= _SINGLE:
        return _keep(best, cost(x, w, scale, zero, maxq, near), scale, zero)
    return _keep(best, cost(x, w, scale, zero, maxq, nearest), scale, zero)


@kernel
def _consider(best, top, x, w, scale, zero, levels):
    """Return the better of `best` (error, scale, zero) and a stored grid, and that of `top` and this grid's codes."""
    maxq = splat(_F(levels))
    if levels <= _SINGLE:
        dot, square, error = trial(x, w, scale, zero, maxq, near)
    else:
        dot, square, error = trial(x, w, scale, zero, maxq, nearest)
    return _keep(best, error, scale, zero), better(top, (dot, square), scale, zero)


@kernel
def _scan(top, x, w, span, middle, plan, symmetric, maxq):
    """Return the best (dot, square, scale, zero) of the plan's scales; symmetric grids take them with both signs.

    Where a grid is not symmetric, the middle of its values is to lie near the `middle` of the block's range.
    """
    half = maxq * splat(_F(0.5))
    zero = half + splat(_F(0.5))
    for turn in range(2 if symmetric else 2 * plan.around + 1):
        for t in range(plan.scales):
            factor = plan.lowest + plan.step * t
            scale = span * splat(_F(-factor if symmetric and turn else factor))
            if not symmetric:
                zero = rint(half - middle / scale) + splat(_F(turn - plan.around))
                zero = lesser(greater(zero, splat(_F(0))), maxq)
            top = better(top, merit(x, w, scale, zero, maxq), scale, zero)
    return top


@kernel
def _scan_near(top, x, w, plan, symmetric, maxq):
    """Return the best of the grids around `top`."""
    _, _, middle, center = top
    zeros = greater(center - splat(_F(1)), splat(_F(0))), center, lesser(center + splat(_F(1)), maxq)
    for t in range(-plan.near, plan.near + 1):
        scale = middle * splat(_F(1.0 + plan.near_step * t))
        if symmetric or not plan.beside:
            if t:  # else it is `top`
                top = better(top, merit(x, w, scale, center, maxq), scale, center)
        else:
            first, second, third = merits(x, w, scale, zeros, maxq)
            top = better(top, first, scale, zeros[0])
            top = better(top, second, scale, zeros[1])
            top = better(top, third, scale, zeros[2])
    return top


@kernel
def search(x, w, low, high, line, plan, symmetric, weighted, levels, unit, inverse, kind):
    """Return the scale as stored and the zero point with the least weighted error; scale 0 where there is none.

    Plain rounding and, where it has the same measure, the end of ONNX Runtime's search are among the candidates that
    are judged as stored, so that neither is ever better. `line` is what `ort_lines` returns of these blocks, and not
    looked at where another measure holds or the grid is symmetric. `levels` is the greatest code.
    """
    maxq = splat(_F(levels))
    half = (maxq + splat(_F(1))) * splat(_F(0.5))
    scale, zero = rtn(low, high, symmetric, maxq, unit, inverse, kind)
    best = splat(_F(np.inf)), scale, zero
    top = splat(_F(0)), splat(_F(1)), scale, zero
    best, top = _consider(best, top, x, w, scale, zero, levels)
    if symmetric:
        largest = greater(-low, high)
        best = _judge(best, x, w, largest / (half - splat(_F(0.5))), half, levels, unit, inverse, kind)
        top = _scan(top, x, w, largest / half, high, plan, symmetric, maxq)
    else:
        start, stop = lesser(low, splat(_F(0))), greater(high, splat(_F(0)))
        top = _scan(top, x, w, (stop - start) / maxq, (start + stop) * splat(_F(0.5)), plan, symmetric, maxq)
        if not weighted:
            scale, minimum = line
            zero = zero_point(minimum, scale, maxq)
            scale = stored(scale, maxq, unit, inverse, kind)
            best, top = _consider(best, top, x, w, scale, zero, levels)
        constant = ~(high > low)
        if any_lane(constant):  # a power of two as code stores one value as well as the scale's type can
            scale = where(constant, fabs(high) / half, splat(_F(0)))
            zero = where(high > splat(_F(0)), splat(_F(0)), maxq)
            best = _judge(best, x, w, scale, zero, levels, unit, inverse, kind)
            scale = where(constant, inverse, splat(_F(0)))  # ONNX Runtime's: 1
            best = _judge(best, x, w, scale, zero_point(low, scale, maxq), levels, unit, inverse, kind)
    if plan.near:
        top = _scan_near(top, x, w, plan, symmetric, maxq)
    dot, square, _, zero = top
    best = _judge(best, x, w, dot / square, zero, levels, unit, inverse, kind)
    for _ in range(plan.refits):
        dot, square = merit(x, w, dot / square, zero, maxq)
        best = _judge(best, x, w, dot / square, zero, levels, unit, inverse, kind)
    return best[1], best[2]
