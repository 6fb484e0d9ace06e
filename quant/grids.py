"""Grids of codes as they can be stored: scale in its storage type, integer zero point; and what they cost."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import numpy as np

from onnx_tailor.quant.compiled import inlined, kernel
from onnx_tailor.quant.lanes import (
    WIDTH,
    bits,
    fabs,
    fma,
    from_bits,
    greater,
    lesser,
    load,
    rint,
    splat,
    where,
)

_F, _U = np.float32, np.uint32
_TINY = 2.0**-126


@kernel
def _rounded(scale, drop):
    """Round to the nearest float with `drop` bits less, the even one of two."""
    word = bits(scale)
    odd = (word >> splat(_U(drop))) & splat(_U(1))
    word = word + odd + splat(_U((1 << drop - 1) - 1))
    return from_bits((word >> splat(_U(drop))) << splat(_U(drop)))


@kernel
def representable(value, kind):
    """Return the nearest value that a storage type holds, infinite where none does.

    `kind` counts as `format.SCALE_TYPES` does.
    """
    if kind == 0:
        return value
    if kind == 2:
        return _rounded(value, 16)
    magnitude, step = fabs(value), splat(_F(2.0**24))  # below 2^-14, float16 counts in steps of 2^-24
    result = where(magnitude < splat(_F(2.0**-14)), rint(value * step) / step, _rounded(value, 13))
    return where(magnitude >= splat(_F(65520.0)), value * splat(_F(np.inf)), result)


@kernel
def stored(scale, maxq, unit, inverse, kind):
    """Return the nearest scale that the storage type holds; zero where it is too small, and for denormal floats.

    Neither the scale nor its product with a code is ever infinite. `scale` and the result are in units of `unit`;
    `kind` counts as `format.SCALE_TYPES` does.
    """
    true = scale * unit
    magnitude = fabs(true)
    result = representable(true, kind)
    largest = splat(_F(65504.0)) if kind == 1 else splat(_F(2.0**127))
    largest = lesser(largest, splat(_F(2.0**127)) / ((maxq + splat(_F(1))) * splat(_F(0.5))))
    result = where(magnitude >= largest, where(true > splat(_F(0)), largest, -largest), result)
    if kind != 1:
        result = where(magnitude < splat(_F(_TINY)), splat(_F(0)), result)
    return result * inverse


@kernel
def zero_point(minimum, scale, maxq):
    """Return the code that stands for zero where `minimum` has code 0; any where scale is 0."""
    return lesser(greater(rint(-minimum / scale), splat(_F(0))), maxq)


@kernel
def rtn(low, high, symmetric, maxq, unit, inverse, kind):
    """Return the scale as stored and the zero point that map a block's range, zero included, onto the codes."""
    half = (maxq + splat(_F(1))) * splat(_F(0.5))
    if symmetric:
        return stored(-where(-low > high, low, high) / half, maxq, unit, inverse, kind), half
    start, stop = lesser(low, splat(_F(0))), greater(high, splat(_F(0)))
    scale = stored((stop - start) / maxq, maxq, unit, inverse, kind)
    return scale, where(scale > splat(_F(0)), zero_point(start, scale, maxq), half)


@inlined
def near(value, scale, inverse, low, high):
    """Return the code nearest to `value`, or of two in whose middle it lies, as far as float32 can tell, either.

    With up to 16 codes, the square of what is left is then within 1.5e-5 of the least.
    """
    code = rint(lesser(greater(value * inverse, low), high))
    return code, fma(-code, scale, value)


@inlined
def nearest(value, scale, inverse, low, high):
    """Return the code nearest to `value` and what is left."""
    code = rint(value * inverse)
    # A ratio near the middle of two codes may have been rounded across it.
    code = lesser(greater(code + rint(fma(-code, scale, value) * inverse), low), high)
    return code, fma(-code, scale, value)


@inlined
def whole(value, scale, inverse, zero, maxq):
    """Return the code nearest to `value` and what is left, for an integer zero point."""
    code, rest = nearest(value, scale, inverse, -zero, maxq - zero)
    return code + zero, rest


@kernel
def better(best, found, scale, zero):
    """Return the better of two (dot, square, scale, zero): the one with the greater dot^2 / square."""
    dot, square = found
    improves = dot * dot * best[1] > best[0] * best[0] * square
    return (
        where(improves, dot, best[0]),
        where(improves, square, best[1]),
        where(improves, scale, best[2]),
        where(improves, zero, best[3]),
    )


@kernel
def merit(x, w, scale, zero, maxq):
    """Return `dot` and `square`, sums of w * code * x and w * code^2 over the codes that a grid gives.

    With the least-squares scale dot / square for these codes, the weighted error is sum(w * x^2) - dot^2 / square.
    """
    inverse, low, high = splat(_F(1)) / scale, -zero, maxq - zero
    dot = square = splat(_F(0))
    for i in range(0, len(x), WIDTH):
        value = load(x, i)
        code = rint(lesser(greater(value * inverse, low), high))
        weighted = load(w, i) * code
        dot, square = fma(weighted, value, dot), fma(weighted, code, square)
    return dot, square


@inlined
def _add(sums, weighted, code, value):
    return fma(weighted, value, sums[0]), fma(weighted, code, sums[1])


@kernel
def merits(x, w, scale, zeros, maxq):
    """Return what `merit` does for each of three zero points."""
    inverse = splat(_F(1)) / scale
    first = second = third = splat(_F(0)), splat(_F(0))
    lows = -zeros[0], -zeros[1], -zeros[2]
    highs = maxq - zeros[0], maxq - zeros[1], maxq - zeros[2]
    for i in range(0, len(x), WIDTH):
        value, weight = load(x, i), load(w, i)
        nearest = rint(value * inverse)
        code = lesser(greater(nearest, lows[0]), highs[0])
        first = _add(first, weight * code, code, value)
        code = lesser(greater(nearest, lows[1]), highs[1])
        second = _add(second, weight * code, code, value)
        code = lesser(greater(nearest, lows[2]), highs[2])
        third = _add(third, weight * code, code, value)
    return first, second, third


@kernel
def trial(x, w, scale, zero, maxq, code_of):
    """Return what `merit` does, and the weighted error of a grid, infinite where its scale is 0.

    `code_of` is `near` or `nearest`.
    """
    inverse, low, high = splat(_F(1)) / scale, -zero, maxq - zero
    dot = square = error = splat(_F(0))
    for i in range(0, len(x), WIDTH):
        value, weight = load(x, i), load(w, i)
        code, rest = code_of(value, scale, inverse, low, high)
        weighted = weight * code
        dot, square = fma(weighted, value, dot), fma(weighted, code, square)
        error = fma(weight * rest, rest, error)
    return dot, square, where(fabs(scale) > splat(_F(0)), error, splat(_F(np.inf)))


@kernel
def cost(x, w, scale, zero, maxq, code_of):
    """Return the weighted error of a grid as `trial` does."""
    inverse, low, high = splat(_F(1)) / scale, -zero, maxq - zero
    error = splat(_F(0))
    for i in range(0, len(x), WIDTH):
        _, rest = code_of(load(x, i), scale, inverse, low, high)
        error = fma(load(w, i) * rest, rest, error)
    return where(fabs(scale) > splat(_F(0)), error, splat(_F(np.inf)))
