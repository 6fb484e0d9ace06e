"""The weighted error of a line scale * code + minimum: nearly, with a bound, or to the last bit as numpy sums it.

`ort_search` asks which of two lines is better. Almost always the cheap answer is beyond doubt.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import numpy as np

from onnx_tailor.quant.compiled import inlined, kernel
from onnx_tailor.quant.lanes import WIDTH, at_least_zero, fabs, fma, lesser_size, load, rint, splat

_F = np.float32


@inlined
def roundings(sum_w, largest, maxq, n):
    """Return what `error_range` needs of a block: the bound's part that is always there, and factors of its others.

    They count, in units of 2^-24, the roundings of all operations, here and in numpy, at their largest. `depth` of them
    lie on the way of a product into a sum. Sums of w * code * |rest| are bounded by 2ab <= a^2 / q + q b^2 with
    q = 2 * maxq. An eighth more makes up for products of roundings.
    """
    depth = splat(_F(min(n, 128) // 8 + n // 128 + 4))
    unit, q = splat(_F(1.125 * 2.0**-24)), maxq + maxq
    always = unit / q * largest * largest * sum_w
    codes, rests = unit / q * splat(_F(7)), unit * (splat(_F(5)) * q + depth + splat(_F(20)))
    return always, codes, rests, unit * (q + q + depth + splat(_F(6))), unit * (depth + splat(_F(8)))


@inlined
def error_range(sums, line, step, origin, always, maxq):
    """Return between what two values the error lies that numpy computes of a line; NaN where there is no line.

    Its codes were rounded on a grid of `step` from `origin` on; the sum of w * rest^2, their distance to it in steps,
    is large against its own rounding. What the line adds by its difference from the grid, `slope` and `shift`, is
    sum w ((scale * code + minimum - x)^2 - (step * code + origin - x)^2) = slope * sum w * code * t + shift * sum w * t
    with t = (scale + step) * code + minimum + origin - 2x, which follows from the other sums. Small as `slope` and
    `shift` are, so is what rounding does to it.
    """
    total, square, dot, rest = sums
    sum_w, twice_x, largest, (constant, by_codes, by_rests, by_error, by_sums) = always
    scale, minimum = line
    slope, shift, steep, high = scale - step, minimum - origin, scale + step, minimum + origin
    on_code = fma(steep, square, fma(high, total, -(dot + dot)))
    on_one = fma(steep, total, fma(high, sum_w, -twice_x))
    area = step * step
    from_grid = area * rest
    error = fma(slope, on_code, fma(shift, on_one, from_grid))
    reach = fma(fabs(scale) + step, maxq, fabs(minimum) + fabs(origin)) + (largest + largest)  # no |t| is larger
    moved = by_sums * reach * fma(fabs(slope), total, fabs(shift) * sum_w)
    bound = fma(by_codes * area, square, constant) + fma(by_error, error, fma(by_rests, from_grid, moved))
    return error - bound, error + bound


@inlined
def _rest(x, w, i, grid, line, maxq, part):
    """Add the weighted error of one code."""
    value = load(x, i * WIDTH)
    code = rint(lesser_size(at_least_zero(grid[0] * (value - grid[1])), maxq))
    rest = (line[0] * code + line[1]) - value
    return part + load(w, i * WIDTH) * (rest * rest)


@kernel
def exact_error(x, w, grid, line, maxq):
    """Return the error that ONNX Runtime computes for the codes round((x - minimum) * inverse) on a line."""
    n = len(x) // WIDTH
    error = splat(_F(0))
    for run in range(0, n, 128):  # see `ort_sums`
        ends = splat(_F(0))
        for half in range(0, 8, 4):
            a = b = c = d = splat(_F(0))
            for i in range(run + half, min(run + 128, n), 8):
                a = _rest(x, w, i, grid, line, maxq, a)
                b = _rest(x, w, i + 1, grid, line, maxq, b)
                c = _rest(x, w, i + 2, grid, line, maxq, c)
                d = _rest(x, w, i + 3, grid, line, maxq, d)
            ends = ends + ((a + b) + (c + d))
        error = error + ends
    return error
