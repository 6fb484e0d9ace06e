"""ONNX Runtime's k-quant, followed to the last bit, so that the search knows where it ends.

onnxruntime/python/tools/quantization/neural_compressor/weight_only.py, after llama.cpp's make_qkx2_quants. It chooses
among lines scale * code + minimum by float32 sums, and where two are nearly as good the last bit decides.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import numpy as np

from onnx_tailor.quant.compiled import inlined, kernel
from onnx_tailor.quant.lanes import WIDTH, any_lane, fabs, greater, splat, where
from onnx_tailor.quant.ort_error import error_range, exact_error, roundings
from onnx_tailor.quant.ort_sums import clipped, rounded, sum_codes, sum_weights

_F = np.float32
_STEPS = 20
_PAST = 15
"""The first step whose factor may round to more than the greatest code."""


@inlined
def no_line():
    """Return something of the type of each of the results of `ort_lines`."""
    none = splat(_F(0))
    return none, none


@inlined
def _fit(sums, always):
    """Return the least-squares scale and minimum for codes with these sums."""
    total, square, dot, _ = sums
    sum_w, sum_x = always[0], always[1] * splat(_F(0.5))
    determinant = sum_w * square - total * total
    return (sum_w * dot - sum_x * total) / determinant, (square * sum_x - total * dot) / determinant


@inlined
def _begin(x, w, low, high, maxq):
    """Return what all steps need of a group, and the state before them.

    A state is the best line so far (between what two values its error lies; scale and minimum; its sum of w * code; the
    grid, as (inverse, minimum), that gave its codes), and the inverse of the last step that, from that line's minimum,
    led to the same line and sum again, or 0. All such steps give the same codes, since these grow with the inverse (the
    factor), but perhaps not those of the line: the least error of both is what ONNX Runtime goes on with.
    """
    sum_w, sum_x = sum_weights(x, w)
    largest = greater(-low, high)
    always = sum_w, sum_x + sum_x, largest, roundings(sum_w, largest, maxq, len(x) // WIDTH)
    grid = maxq / (high - low), low
    sums = sum_codes(x, w, grid, maxq, clipped)
    line = splat(_F(1)) / grid[0], low
    error = error_range(sums, line, (high - low) / maxq, low, always, maxq)
    return always, ((error, line, sums[0], grid), splat(_F(0)))


@inlined
def _grid(factor, high, state):
    """Return the grid that lays codes 0 to `factor` over the range from the best line's minimum on."""
    minimum = state[0][1][1]
    return factor / (high - minimum), minimum


@inlined
def _cut_off(grid, low):
    """Return where the grid cuts off the least weight; not where places are no numbers, and codes neither."""
    inverse, minimum = grid
    return (inverse * (low - minimum) < splat(_F(-0.5))) | (inverse < splat(_F(0)))


@inlined
def _try(sums, grid, step, always, maxq):
    """Return the line for the codes that a grid of this step gives, as a state holds it."""
    line = _fit(sums, always)
    return error_range(sums, line, step, grid[1], always, maxq), line, sums[0], grid


@inlined
def _verdict(found, state):
    """Return where a line is surely better, where it is the best once more, and where none of this nor the opposite."""
    error, line, total, _ = found
    best, best_line, best_total, _ = state[0]
    improves = error[1] < best[0]
    same = (line[0] == best_line[0]) & (line[1] == best_line[1]) & (total == best_total)
    return improves, same, (best[1] >= error[0]) & ~(improves | same)


@kernel
def _settle(x, w, line, grid, again, found, found_grid, maxq):
    """Return where the line found is better than that of a state, by errors to the last bit."""
    error = exact_error(x, w, grid, line, maxq)
    twin = fabs(again) > splat(_F(0))
    if any_lane(twin):
        other = exact_error(x, w, (again, line[1]), line, maxq)
        error = where(twin & (other < error), other, error)
    return exact_error(x, w, found_grid, found, maxq) < error


@inlined
def _pick(mask, first, second):
    """Return two numbers of `first` where the mask is set, else of `second`."""
    return where(mask, first[0], second[0]), where(mask, first[1], second[1])


@inlined
def _next(state, found, improves, same):
    """Return the state after a step."""
    (error, line, total, grid), again = state
    best = (
        _pick(improves, found[0], error),
        _pick(improves, found[1], line),
        where(improves, found[2], total),
        _pick(improves, found[3], grid),
    )
    return best, where(improves, splat(_F(0)), where(same, found[3][0], again))


@kernel
def ort_lines(first, second, levels):
    """Follow ONNX Runtime's k-quant, in each of two groups of blocks, until it rounds the zero point.

    A group is (x, w, low, high). While one group waits for the end of a sum, the processor works on the other. Returns
    of each group the line's scale and minimum.
    """
    maxq = splat(_F(levels))
    x1, w1, low1, high1 = first
    x2, w2, low2, high2 = second
    always1, state1 = _begin(x1, w1, low1, high1, maxq)
    always2, state2 = _begin(x2, w2, low2, high2, maxq)
    for step in range(_STEPS):
        span = -1 + 0.1 * step + levels
        factor, unit = splat(_F(span)), splat(_F(1 / span))
        grid1, grid2 = _grid(factor, high1, state1), _grid(factor, high2, state2)
        if step < _PAST and not any_lane(_cut_off(grid1, low1) | _cut_off(grid2, low2)):
            sums1, sums2 = sum_codes(x1, w1, grid1, maxq, rounded), sum_codes(x2, w2, grid2, maxq, rounded)
        else:
            sums1, sums2 = sum_codes(x1, w1, grid1, maxq, clipped), sum_codes(x2, w2, grid2, maxq, clipped)
        found1 = _try(sums1, grid1, (high1 - grid1[1]) * unit, always1, maxq)
        found2 = _try(sums2, grid2, (high2 - grid2[1]) * unit, always2, maxq)
        improves1, same1, open1 = _verdict(found1, state1)
        improves2, same2, open2 = _verdict(found2, state2)
        if any_lane(open1 | open2):
            if any_lane(open1):
                improves1 = _settle(x1, w1, state1[0][1], state1[0][3], state1[1], found1[1], grid1, maxq)
            if any_lane(open2):
                improves2 = _settle(x2, w2, state2[0][1], state2[0][3], state2[1], found2[1], grid2, maxq)
        state1, state2 = _next(state1, found1, improves1, same1), _next(state2, found2, improves2, same2)
    return state1[0][1], state2[0][1]
