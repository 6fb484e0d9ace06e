"""The compiled loops. One call works through rows on one thread; callers bring the threads.

A block is scaled by a power of two, which is exact, so that its largest magnitude lies near one: squares neither
overflow nor vanish, and only the scale's storage type sees the true size.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# numba infers the types of compiled functions; annotations would only repeat them.

import math

import numpy as np
from numba import njit

_SUMS = {"reassoc", "contract", "nsz"}
"""Sums may be reordered, so that they vectorise; NaN and infinity keep their meaning."""
_F = np.float32
_LARGEST = (3.4028234663852886e38, 65504.0, 3.3895313892515355e38)
"""Of float32, float16 and bfloat16, in the order of `format.SCALE_TYPES`."""
_KEEP = (1.0, 2.0**42 + 1, 2.0**45 + 1)
"""Veltkamp's factor that rounds a float64 to 11 and to 8 significant bits."""
_TINY = 2.0**-126
_ORT_STEPS = 20
_REFINEMENTS = 3


@njit(cache=True, nogil=True)
def _stored(scale, kind):
    """Return the nearest value that the storage type holds: never infinite, zero where it is too small."""
    if abs(scale) >= _LARGEST[kind]:
        return math.copysign(_LARGEST[kind], scale)
    if kind == 1 and abs(scale) < 2.0**-14:
        return np.rint(scale * 2.0**24) * 2.0**-24
    if abs(scale) < _TINY:
        return 0.0
    if kind == 0:
        return np.float64(_F(scale))
    spread = scale * _KEEP[kind]
    return spread - (spread - scale)


@njit(cache=True, nogil=True, fastmath=_SUMS)
def _grid(x, w, scale, zero, maxq):
    """Return the weighted error of a grid, and the least-squares scale for the codes that it gives."""
    inverse, low, high = _F(1) / scale, -zero, maxq - zero
    error = dot = square = _F(0)
    for i in range(len(x)):
        c = x[i] * inverse
        c = low if c < low else c
        c = high if c > high else c
        c = np.rint(c)
        d = c * scale - x[i]
        wc = w[i] * c
        error += w[i] * d * d
        dot += wc * x[i]
        square += wc * c
    return error, (dot / square if square > 0 else scale)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _exact_error(x, w, scale, zero, maxq):
    """Return the weighted error in float64, with each code the nearest of the grid."""
    error, inverse = 0.0, 1.0 / scale
    for i in range(len(x)):
        value = np.float64(x[i])
        c = value * inverse
        c = -zero if c < -zero else c
        c = maxq - zero if c > maxq - zero else c
        d = np.rint(c) * scale - value
        error += np.float64(w[i]) * d * d
    return error


@njit(cache=True, nogil=True)
def _keep(best, x, w, scale, zero, maxq, unit, kind):
    """Judge a grid as it would be stored, and return the least-squares scale for its codes.

    `best` (error, scale, zero) keeps it if none was better.
    """
    stored = _F(_stored(np.float64(scale) * unit, kind) / unit)
    if stored == 0:
        return stored
    error, refit = _grid(x, w, stored, zero, maxq)
    if error < best[0]:
        best[0], best[1], best[2] = error, stored, zero
    return refit


@njit(cache=True, nogil=True, fastmath=_SUMS)
def _least_squares(x, w, inverse, low, maxq, total_w, total_x):
    """Return scale and minimum of the best line through the codes round((x - low) * inverse)."""
    sum_l = sum_l2 = sum_xl = _F(0)
    for i in range(len(x)):
        q = (x[i] - low) * inverse
        q = _F(0) if q < 0 else q
        q = maxq if q > maxq else q
        q = np.rint(q)
        wq = w[i] * q
        sum_l += wq
        sum_l2 += wq * q
        sum_xl += wq * x[i]
    determinant = total_w * sum_l2 - sum_l * sum_l
    if not determinant > 0:
        return _F(0), low
    return (
        (total_w * sum_xl - total_x * sum_l) / determinant,
        (sum_l2 * total_x - sum_l * sum_xl) / determinant,
    )


@njit(cache=True, nogil=True, fastmath=_SUMS)
def _line_error(x, w, inverse, low, maxq, scale, minimum):
    """Return the weighted error of scale * round((x - low) * inverse) + minimum."""
    error = _F(0)
    for i in range(len(x)):
        q = (x[i] - low) * inverse
        q = _F(0) if q < 0 else q
        q = maxq if q > maxq else q
        d = scale * np.rint(q) + minimum - x[i]
        error += w[i] * d * d
    return error


@njit(cache=True, nogil=True)
def _zero_point(minimum, scale, maxq):
    zero = np.rint(-minimum / scale)
    return _F(min(max(zero, 0.0), np.float64(maxq)))


@njit(cache=True, nogil=True)
def _search_asymmetric(best, x, w, low, high, maxq, unit, kind):
    """Try ONNX Runtime's own path, judged on the stored grid, then the neighbours of the best with refitted scales.

    ONNX Runtime: onnxruntime/python/tools/quantization/neural_compressor/weight_only.py, after llama.cpp's
    make_qkx2_quants.
    """
    total_w = total_x = _F(0)
    for i in range(len(x)):
        total_w += w[i]
        total_x += w[i] * x[i]
    if high > low:
        span, minimum = (high - low) / maxq, low
        path_error = _line_error(x, w, 1 / span, low, maxq, span, low)
        _keep(best, x, w, span, _zero_point(low, span, maxq), maxq, unit, kind)
        for step in range(_ORT_STEPS):
            inverse = (maxq + _F(-1.0) + _F(0.1) * _F(step)) / (high - minimum)
            scale, fitted = _least_squares(x, w, inverse, minimum, maxq, total_w, total_x)
            error = _line_error(x, w, inverse, minimum, maxq, scale, fitted)
            if scale > 0 and error < path_error:
                path_error, minimum = error, fitted
                _keep(best, x, w, scale, _zero_point(fitted, scale, maxq), maxq, unit, kind)
    for _ in range(_REFINEMENTS):
        before, center, scale = best[0], best[2], best[1]
        for shift in (-1, 0, 1):
            zero = center + _F(shift)
            if zero >= 0 and zero <= maxq:
                refit = _keep(best, x, w, scale, zero, maxq, unit, kind)
                _keep(best, x, w, refit, zero, maxq, unit, kind)
        if not best[0] < before:
            break


@njit(cache=True, nogil=True)
def _search_symmetric(best, x, w, maxq, unit, kind):
    """Try scales of both signs around the largest magnitude (the codes reach one further down than up)."""
    zero = _F((maxq + 1) // 2)
    largest = _F(0)
    for i in range(len(x)):
        largest = max(largest, abs(x[i]))
    for sign in (-1, 1):
        for step in range(_ORT_STEPS):
            scale = sign * largest / (zero * (_F(0.75) + _F(0.03) * _F(step)))
            refit = _keep(best, x, w, scale, zero, maxq, unit, kind)
            _keep(best, x, w, refit, zero, maxq, unit, kind)


@njit(cache=True, nogil=True)
def _rtn(low, high, symmetric, maxq, unit, kind):
    """Return the scale as stored and the zero point that map the range, zero included, onto the codes."""
    if symmetric:
        extreme = low if -low > high else high
        half = (maxq + 1) // 2
        return _F(_stored(-np.float64(extreme) / half * unit, kind) / unit), _F(half)
    start, stop = min(np.float64(low), 0.0), max(np.float64(high), 0.0)
    scale = _stored((stop - start) / maxq * unit, kind) / unit
    return _F(scale), (_zero_point(start, scale, maxq) if scale > 0 else _F(0))


@njit(cache=True, nogil=True)
def _weigh(w, x, importance, start):
    """Fill `w` with what an error of each weight costs, the largest near one.

    Without importance (empty): rms + |x|, as llama.cpp has it. Where importance is all zero: 1. Padding: 0.
    """
    largest = _F(0)
    stop = min(len(x), len(importance) - start)
    for i in range(stop):
        largest = max(largest, importance[start + i])
    w[:] = 0
    if largest > 0:
        unit = 2.0 ** math.frexp(np.float64(largest))[1]
        for i in range(stop):
            w[i] = _F(np.float64(importance[start + i]) / unit)
    elif len(importance):
        w[:stop] = 1
    else:
        total = _F(0)
        for i in range(len(x)):
            total += x[i] * x[i]
        rms = _F(math.sqrt(total / len(x)))
        for i in range(len(x)):
            w[i] = rms + abs(x[i])


@njit(cache=True, nogil=True)
def _choose(best, x, w, low, high, symmetric, search, maxq, unit, kind):
    """Return scale and zero point of a block; scale 0 where the storage type holds no scale small enough."""
    scale, zero = _rtn(low, high, symmetric, maxq, unit, kind)
    if not search:
        return scale, zero
    best[0], best[1], best[2] = _F(np.inf), scale, zero
    if scale != 0:
        _keep(best, x, w, scale, zero, maxq, unit, kind)
    if symmetric:
        _search_symmetric(best, x, w, maxq, unit, kind)
    else:
        _search_asymmetric(best, x, w, low, high, maxq, unit, kind)
    # float32 sums choose among many; float64 decides against plain rounding, so that it never is better.
    found, plain = np.float64(best[1]), np.float64(scale)
    if found == 0 or (
        plain != 0 and not _exact_error(x, w, found, best[2], maxq) < _exact_error(x, w, plain, zero, maxq)
    ):
        return scale, zero
    return best[1], best[2]


@njit(cache=True, nogil=True)
def _load(row, start, x):
    """Fill `x` with a block, padded with zeros and scaled near one. Return unit, minimum, maximum."""
    k = len(row)
    low = high = _F(0) if start + len(x) > k else row[start]
    for i in range(len(x)):
        value = row[start + i] if start + i < k else _F(0)
        x[i] = value
        low = min(low, value)
        high = max(high, value)
    largest = max(-low, high)
    if not largest > _TINY:
        return 0.0, low, high
    unit = 2.0 ** math.frexp(np.float64(largest))[1]
    for i in range(len(x)):
        x[i] = _F(np.float64(x[i]) / unit)
    return unit, _F(np.float64(low) / unit), _F(np.float64(high) / unit)


@njit(cache=True, nogil=True)
def _pack(codes, x, scale, zero, maxq, bits):
    """Write the nearest codes of a block; rounding in float64 finds the nearest for every float32 scale."""
    each, inverse, offset = 8 // bits, 1.0 / np.float64(scale), np.float64(zero)
    for byte in range(len(codes)):
        value = 0
        for part in range(each):
            c = np.float64(x[byte * each + part]) * inverse
            c = -offset if c < -offset else c
            c = maxq - offset if c > maxq - offset else c
            value |= int(np.rint(c) + offset) << (part * bits)
        codes[byte] = value


@njit(cache=True, nogil=True)
def _measure(sums, row, start, codes, scale, zero, bits):
    """Add a block's squared error and squared weights to `sums`."""
    each, mask = 8 // bits, (1 << bits) - 1
    error = square = 0.0
    for i in range(min(len(codes) * each, len(row) - start)):
        code = (codes[i // each] >> (i % each * bits)) & mask
        x = np.float64(row[start + i])
        d = np.float64((_F(code) - zero) * scale) - x
        error += d * d
        square += x * x
    sums[0] += error
    sums[1] += square


@njit(cache=True, nogil=True)
def _first_bad(row):
    for i in range(len(row)):
        if not abs(row[i]) < np.inf:
            return i
    return -1


@njit(cache=True, nogil=True)
def quantize_rows(weight, importance, bits, block_size, symmetric, search, kind, codes, scales, points, sums):
    """Quantize `weight` [rows, K] into `codes`, `scales` (float32, as stored) and `points` (packed, zeroed before).

    `importance` has K elements or none. `sums` receives the squared error and the squared weights.
    Returns -1, or the flat index of the first NaN or infinity.
    """
    rows, k = weight.shape
    maxq = _F((1 << bits) - 1)
    half = (1 << bits) // 2
    x, w, best = np.empty(block_size, np.float32), np.empty(block_size, np.float32), np.empty(3, np.float32)
    for r in range(rows):
        bad = _first_bad(weight[r])
        if bad >= 0:
            return r * k + bad
        for b in range(scales.shape[1]):
            unit, low, high = _load(weight[r], b * block_size, x)
            scale, zero = _F(0), _F(half)
            if unit > 0:
                if search:
                    _weigh(w, x, importance, b * block_size)
                scale, zero = _choose(best, x, w, low, high, symmetric, search, maxq, unit, kind)
            if scale == 0:  # nothing but zeros, as far as the storage type can tell
                zero = _F(half)
                x[:] = 0
                scales[r, b] = 1
                _pack(codes[r, b], x, _F(1), zero, maxq, bits)
            else:
                scales[r, b] = _F(np.float64(scale) * unit)
                _pack(codes[r, b], x, scale, zero, maxq, bits)
            _measure(sums, weight[r], b * block_size, codes[r, b], scales[r, b], zero, bits)
            if not symmetric:
                points[r, b * bits // 8] |= int(zero) << (b * bits % 8)
    return -1
