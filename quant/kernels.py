"""The compiled loop over blocks. One call works through a tile on one thread; callers bring the threads."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import numpy as np

from onnx_tailor.quant.compiled import entry, kernel
from onnx_tailor.quant.grids import rtn
from onnx_tailor.quant.lanes import WIDTH, any_lane, fabs, splat, store, where
from onnx_tailor.quant.ort_search import SCRATCH, weigh_by_size
from onnx_tailor.quant.search import search, weigh_by_importance
from onnx_tailor.quant.tiles import encode, load_columns, load_rows, normalize

_F, _U = np.float32, np.uint32


@kernel
def _locate_rows(group, rows, k, block, place, starts, columns, counts):
    """Give the lanes WIDTH blocks that follow each other in the rows. Return how many there are.

    Of each: its number, its first weight's element and column, and its number of weights.
    """
    blocks = -(-k // block)
    lanes = min(WIDTH, rows * blocks - group * WIDTH)
    for lane in range(WIDTH):
        place[lane] = group * WIDTH + lane
        row = place[lane] // blocks
        columns[lane] = (place[lane] - row * blocks) * block
        starts[lane] = row * k + columns[lane]
        counts[lane] = min(block, k - columns[lane]) if lane < lanes else 0
    return lanes


@kernel
def _locate_columns(group, rows, k, block, place, starts, columns, counts):
    """Give the lanes the same block of WIDTH rows. Return how many there are."""
    strips = -(-rows // WIDTH)
    b, row = group // strips, group % strips * WIDTH
    for lane in range(WIDTH):
        place[lane] = (row + lane) * -(-k // block) + b
        columns[lane], counts[lane] = b * block, min(block, k - b * block)
        starts[lane] = columns[lane] * rows + row + lane
    return min(WIDTH, rows - row)


@kernel
def _spread(words, lanes, place, codes):
    """Write each lane's words where its block lies."""
    each = len(words) // WIDTH
    for lane in range(lanes):
        for j in range(each):
            codes[place[lane] * each + j] = words[j * WIDTH + lane]


@kernel
def _write_block(scale, zero, at, width, symmetric, scales, points):
    """Write a block's scale and zero point."""
    row, b = at // scales.shape[1], at % scales.shape[1]
    scales[row, b] = scale
    if not symmetric:
        points[row, b * width // 8] |= np.uint8(zero) << (b * width % 8)


@entry
def quantize_tile(digest):
    """Return the kernel; see `entry`."""

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
        sums,
    ):
        """Quantize a matrix [rows, K] = `shape` whose bytes are `source`, stored by rows or by columns.

        `kind` and `scale_kind` count as `format.SCALE_TYPES` does. `importance` holds K float32 as bytes, or nothing.
        A plan without scales means plain rounding. `codes` takes 32 bits at a time, `scales` float32; `points` is zero
        before; `sums` receives squared errors and squared weights.
        Returns whether every weight is finite; if not, the results are worth nothing.
        """
        _ = digest
        rows, k = shape
        blocks = scales.shape[1]
        levels = (1 << width) - 1
        maxq, half = splat(_F(levels)), splat(_F(1 << width - 1))
        x, w = np.empty(block * WIDTH, np.float32), np.empty(block * WIDTH, np.float32)
        scratch = np.empty(SCRATCH + len(x), np.float32)
        words = np.empty(block * width // 32 * WIDTH, np.uint32)
        results = np.empty(5 * WIDTH, np.float32)
        place, starts = np.empty(WIDTH, np.int64), np.empty(WIDTH, np.int64)
        columns, counts = np.empty(WIDTH, np.int64), np.empty(WIDTH, np.int64)
        for group in range(-(-rows // WIDTH) * blocks if by_columns else -(-rows * blocks // WIDTH)):
            if by_columns:
                lanes = _locate_columns(group, rows, k, block, place, starts, columns, counts)
                load_columns(source, kind, starts[0], rows, lanes, counts[0], x)
            else:
                lanes = _locate_rows(group, rows, k, block, place, starts, columns, counts)
                load_rows(source, kind, starts, counts, x)
            unit, inverse, low, high, largest = normalize(x)
            if any_lane(largest >= splat(_U(255 << 23))):
                return False
            if plan.scales == 0:
                scale, zero = rtn(low, high, symmetric, maxq, unit, inverse, scale_kind)
            else:
                if len(importance):
                    load_rows(importance, np.int64(0), columns, counts, w)
                    weigh_by_importance(w)
                else:
                    weigh_by_size(x, w, scratch)
                weighted = len(importance) > 0
                scale, zero = search(
                    x, w, low, high, plan, symmetric, weighted, levels, unit, inverse, scale_kind, scratch
                )

            usable = fabs(scale) > splat(_F(0))  # else nothing but zeros, as far as the storage type can tell
            zero = where(usable, zero, half)
            error, square = encode(x, width, scale, zero, maxq, words)
            _spread(words, lanes, place, codes)
            for i, value in enumerate((where(usable, scale * unit, splat(_F(1))), zero, error, square, unit)):
                store(results, i * WIDTH, value)
            for lane in range(lanes):
                _write_block(results[lane], results[WIDTH + lane], place[lane], width, symmetric, scales, points)
                size = np.float64(results[4 * WIDTH + lane]) ** 2
                sums[0] += np.float64(results[2 * WIDTH + lane]) * size
                sums[1] += np.float64(results[3 * WIDTH + lane]) * size
        return True

    return quantize_tile
