"""Weights into lanes and codes out of them: WIDTH blocks at a time, weight i of every block in one vector.

`x` holds weight i of lane l at i * WIDTH + l. Blocks are scaled by a power of two, which is exact, so that the largest
magnitude lies near one: squares neither overflow nor vanish, and only the scale's storage type sees the true size.
"""

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
    load16,
    load16_part,
    load_part,
    splat,
    store,
    to_uint,
    transpose,
    where,
)

_F, _U = np.float32, np.uint32


@kernel
def _half(word):
    """Return the values of float16 bits, without denormal floats on the way, which are slow on many processors."""
    magnitude = (word & splat(_U(0x7FFF))) << splat(_U(13))
    normal = magnitude + splat(_U(112 << 23))
    normal = where(magnitude >= splat(_U(31 << 23)), normal | splat(_U(255 << 23)), normal)  # infinity and NaN
    small = from_bits(magnitude + splat(_U(113 << 23))) - splat(_F(2.0**-14))
    value = where(magnitude < splat(_U(1 << 23)), bits(small), normal)
    return from_bits(value | ((word & splat(_U(0x8000))) << splat(_U(16))))


@inlined
def _widened(word, kind):
    """Return the values of bfloat16 bits, or float16."""
    return from_bits(word << splat(_U(16))) if kind == 2 else _half(word)


@kernel
def _floats(source, element, kind, count):
    """Return up to WIDTH weights from `element` on, zero from `count` on. `source` is bytes; `kind` as SCALE_TYPES."""
    if count >= WIDTH:
        return _whole_floats(source, element, kind)
    if kind == 0:
        return load_part(source, element * 4, count)
    return _widened(load16_part(source, element * 2, count), kind)


@inlined
def _whole_floats(source, element, kind):
    """Return WIDTH weights from `element` on."""
    if kind == 0:
        return load(source, element * 4)
    return _widened(load16(source, element * 2), kind)


@kernel
def load_rows(source, kind, starts, counts, x):
    """Load blocks whose weights are neighbours: lane l has `counts[l]` from element `starts[l]` on, then zeros."""
    block = len(x) // WIDTH
    # Where none of them is padded, each begins a whole block after the one before.
    if counts[WIDTH - 1] == block and starts[WIDTH - 1] - starts[0] == (WIDTH - 1) * block:
        for i in range(0, block, WIDTH):
            for lane in range(WIDTH):
                store(x, (i + lane) * WIDTH, _whole_floats(source, starts[0] + lane * block + i, kind))
            transpose(x, i * WIDTH)
        return
    for i in range(0, block, WIDTH):
        for lane in range(WIDTH):
            store(x, (i + lane) * WIDTH, _floats(source, starts[lane] + i, kind, counts[lane] - i))
        transpose(x, i * WIDTH)


@kernel
def load_columns(source, kind, start, pitch, rows, count, x):
    """Load blocks that lie side by side: lane l < `rows` has weight i < `count` at `start + i * pitch + l`."""
    for i in range(len(x) // WIDTH):
        store(x, i * WIDTH, _floats(source, start + i * pitch, kind, rows if i < count else 0))


@kernel
def normalize(x):
    """Scale every block near one. Return its unit, 1 / unit, least and greatest weight, and the largest's bits."""
    low = high = load(x, 0)
    largest = splat(_U(0))
    for i in range(0, len(x), WIDTH):
        value = load(x, i)
        low, high = lesser(low, value), greater(high, value)
        largest = greater(largest, bits(value) & splat(_U(0x7FFFFFFF)))
    exponent = largest & splat(_U(255 << 23))
    exponent = greater(exponent, splat(_U(1 << 23)))
    exponent = where(exponent > splat(_U(253 << 23)), splat(_U(253 << 23)), exponent)
    unit, inverse = from_bits(exponent), from_bits(splat(_U(254 << 23)) - exponent)
    for i in range(0, len(x), WIDTH):
        store(x, i, load(x, i) * inverse)
    return unit, inverse, low * inverse, high * inverse, largest


@kernel
def encode(x, width, scale, zero, maxq, words, code_of):
    """Write the nearest codes of every block to `words`: code i in word i*width//32 at bit (i*width) % 32.

    Return the sums of squared errors and of squared weights. Scale 0: every weight becomes the zero point. `code_of`
    is `grids.whole`, or `float_points.fractional`.
    """
    usable = fabs(scale) > splat(_F(0))
    inverse = where(usable, splat(_F(1)) / scale, splat(_F(0)))
    error = square = splat(_F(0))
    each = 32 // width
    for j in range(len(x) // WIDTH // each):
        word = splat(_U(0))
        for part in range(each):
            value = load(x, (j * each + part) * WIDTH)
            code, rest = code_of(value, scale, inverse, zero, maxq)
            error, square = fma(rest, rest, error), fma(value, value, square)
            word = word | (to_uint(code) << splat(_U(part * width)))
        store(words, j * WIDTH, word)
    return error, square
