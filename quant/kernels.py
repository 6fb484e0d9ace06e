"""The compiled loop over blocks. One call works through a tile on one thread; callers bring the threads."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import numpy as np

from onnx_tailor.quant.compiled import inlined, kernel
from onnx_tailor.quant.float_points import (
    ROUNDS,
    error_of,
    fractional,
    leave_out_padding,
    refine,
    weigh_alike,
)
from onnx_tailor.quant.grids import rtn, whole
from onnx_tailor.quant.lanes import WIDTH, any_lane, fabs, greater, splat, store, where
from onnx_tailor.quant.ort_search import no_line, ort_lines
from onnx_tailor.quant.ort_sums import weigh_by_size
from onnx_tailor.quant.search import search, weigh_by_importance
from onnx_tailor.quant.tiles import encode, load_columns, load_rows, normalize

_F, _U = np.float32, np.uint32


@kernel
def _locate_rows(group, rows, k, block, spots):
    """Give the lanes WIDTH blocks that follow each other in the rows. Return how many there are."""
    place, starts, columns, counts, at_row = spots
    blocks = -(-k // block)
    lanes = min(WIDTH, rows * blocks - group * WIDTH)
    row = group * WIDTH // blocks
    column = (group * WIDTH - row * blocks) * block
    for lane in range(WIDTH):
        place[lane], at_row[lane], columns[lane] = group * WIDTH + lane, row, column
        starts[lane] = row * k + column
        counts[lane] = min(block, k - column) if lane < lanes else 0
        column += block
        if column >= k:
            row, column = row + 1, 0
    return lanes


@kernel
def _locate_columns(group, rows, k, block, spots):
    """Give the lanes the same block of WIDTH rows. Return how many there are."""
    place, starts, columns, counts, at_row = spots
    strips, blocks = -(-rows // WIDTH), -(-k // block)
    b = group // strips
    row, column = (group - b * strips) * WIDTH, b * block
    for lane in range(WIDTH):
        place[lane], at_row[lane], columns[lane] = (row + lane) * blocks + b, row + lane, column
        starts[lane] = column * rows + row + lane
        counts[lane] = min(block, k - column)
    return min(WIDTH, rows - row)


@kernel
def _spread(words, lanes, place, codes):
    """Write each lane's words where its block lies."""
    each = len(words) // WIDTH
    for lane in range(lanes):
        for j in range(each):
            codes[place[lane] * each + j] = words[j * WIDTH + lane]


@inlined
def _write_grids(results, lanes, spots, width, blocks, scales, points, float_points):
    """Write each block's scale and zero point; of `points` and `float_points`, what is not stored is empty."""
    place, at_row = spots[0], spots[4]
    row_bytes = -(-blocks * width // 8)
    for lane in range(lanes):
        scales[place[lane]] = results[lane]
        if len(float_points):
            float_points[place[lane]] = results[WIDTH + lane]
        if len(points):
            bit = (place[lane] - at_row[lane] * blocks) * width
            points[at_row[lane] * row_bytes + (bit >> 3)] |= np.uint8(results[WIDTH + lane]) << (bit & 7)


@kernel
def _groups(shape, block, by_columns):
    """Return the number of groups of WIDTH blocks."""
    rows, blocks = shape[0], -(-shape[1] // block)
    return -(-rows // WIDTH) * blocks if by_columns else -(-rows * blocks // WIDTH)


@inlined
def _load(group, source, kind, by_columns, shape, block, spots, x):
    """Load a group and fill `spots`. Return how many blocks it has, and what `normalize` says of them."""
    rows, k = shape
    if by_columns:
        lanes = _locate_columns(group, rows, k, block, spots)
        load_columns(source, kind, spots[1][0], rows, lanes, spots[3][0], x)
    else:
        lanes = _locate_rows(group, rows, k, block, spots)
        load_rows(source, kind, spots[1], spots[3], x)
    return lanes, normalize(x)


@kernel
def _weigh(x, importance, spots, w):
    """Fill `w` with what an error of each weight costs."""
    if len(importance):
        load_rows(importance, np.int64(0), spots[2], spots[3], w)
        weigh_by_importance(w)
    else:
        weigh_by_size(x, w)


@kernel
def _float_grid(x, w, bounds, counts, scale, zero, rounds, levels, kind):
    """Return a grid with a float zero point, no worse than the given one; without `rounds`, weights cost the same."""
    unit, inverse = bounds[0], bounds[1]
    if not rounds:
        weigh_alike(w)
    leave_out_padding(w, counts)
    return refine(x, w, scale, zero, rounds, splat(_F(levels)), levels, unit, inverse, kind)


@inlined
def _finish(x, w, bounds, scale, zero, lanes, spots, width, blocks, into):
    """Write the codes of a group on its grids, and the grids, where its blocks lie; add to the sums."""
    words, results, codes, scales, points, float_points, sums = into
    unit, levels, middle = bounds[0], splat(_F((1 << width) - 1)), splat(_F(1 << width - 1))
    usable = fabs(scale) > splat(_F(0))  # else nothing but zeros, as far as the storage type can tell
    zero = where(usable, zero, middle)
    if len(float_points):
        _, square = encode(x, width, scale, zero, levels, words, fractional)
        weigh_alike(w)
        leave_out_padding(w, spots[3])
        error = error_of(x, w, scale, zero, levels)
    else:
        error, square = encode(x, width, scale, zero, levels, words, whole)
    _spread(words, lanes, spots[0], codes)
    for i, value in enumerate((where(usable, scale * unit, splat(_F(1))), zero, error, square, unit)):
        store(results, i * WIDTH, value)
    _write_grids(results, lanes, spots, width, blocks, scales, points, float_points)
    total = rest = 0.0
    for lane in range(lanes):
        size = np.float64(results[4 * WIDTH + lane]) ** 2
        rest += np.float64(results[2 * WIDTH + lane]) * size
        total += np.float64(results[3 * WIDTH + lane]) * size
    sums[0] += rest
    sums[1] += total


@kernel
def quantize_tile(
    source,
    kind,
    by_columns,
    importance,
    width,
    block,
    symmetric,
    plan,
    scale_kind,
    shape,
    codes,
    scales,
    points,
    float_points,
    sums,
    memory,
):
    """Quantize a matrix [rows, K] = `shape` whose bytes are `source`, stored by rows or by columns.

    `kind` and `scale_kind` count as `format.SCALE_TYPES` does. `importance` holds K float32 as bytes, or nothing.
    A plan without scales means plain rounding. `codes` takes 32 bits at a time, `scales` float32, both block after
    block; `points`, zero before, takes packed integers, `float_points` a float32 for each block, and what is not asked
    for is empty. `sums` receives squared errors and squared weights. `memory` is what `workspace` returns.
    Returns whether every weight is finite; if not, the results are worth nothing.
    """
    levels = (1 << width) - 1
    maxq = splat(_F(levels))
    floats, words, results, spots = memory
    x1, w1, x2, w2 = floats[0, 0], floats[0, 1], floats[1, 0], floats[1, 1]
    spots1 = spots[0, 0], spots[0, 1], spots[0, 2], spots[0, 3], spots[0, 4]
    spots2 = spots[1, 0], spots[1, 1], spots[1, 2], spots[1, 3], spots[1, 4]
    blocks = -(-shape[1] // block)
    into = (words, results, codes, scales, points, float_points, sums)
    rounds = ROUNDS if plan.scales else 0
    weighted = len(importance) > 0
    groups = _groups(shape, block, by_columns)
    for group in range(0, groups, 2):  # in pairs; see `ort_lines`
        last = min(group + 1, groups - 1)
        lanes1, bounds1 = _load(group, source, kind, by_columns, shape, block, spots1, x1)
        lanes2, bounds2 = _load(last, source, kind, by_columns, shape, block, spots2, x2)
        if any_lane(greater(bounds1[4], bounds2[4]) >= splat(_U(255 << 23))):
            return False
        unit1, inverse1, low1, high1, _ = bounds1
        unit2, inverse2, low2, high2, _ = bounds2
        if plan.scales == 0:
            scale1, zero1 = rtn(low1, high1, symmetric, maxq, unit1, inverse1, scale_kind)
            scale2, zero2 = rtn(low2, high2, symmetric, maxq, unit2, inverse2, scale_kind)
        else:
            _weigh(x1, importance, spots1, w1)
            _weigh(x2, importance, spots2, w2)
            line1 = line2 = no_line()
            if not (symmetric or weighted):
                line1, line2 = ort_lines((x1, w1, low1, high1), (x2, w2, low2, high2), levels)
            scale1, zero1 = search(
                x1, w1, low1, high1, line1, plan, symmetric, weighted, levels, unit1, inverse1, scale_kind
            )
            scale2, zero2 = search(
                x2, w2, low2, high2, line2, plan, symmetric, weighted, levels, unit2, inverse2, scale_kind
            )
        if len(float_points):
            scale1, zero1 = _float_grid(x1, w1, bounds1, spots1[3], scale1, zero1, rounds, levels, scale_kind)
            scale2, zero2 = _float_grid(x2, w2, bounds2, spots2[3], scale2, zero2, rounds, levels, scale_kind)
        _finish(x1, w1, bounds1, scale1, zero1, lanes1, spots1, width, blocks, into)
        if last > group:
            _finish(x2, w2, bounds2, scale2, zero2, lanes2, spots2, width, blocks, into)
    return True
