"""The compiled loops of `float_points`: rows on one thread, one block after the other; the last may be shorter."""

# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator"

import numpy as np
from numba import njit

_F = np.float32
_SUMS = {"reassoc", "contract", "nsz"}


@njit(cache=True, nogil=True, error_model="numpy")
def ranges(weight, size, low, high):
    """Write the least and the largest weight of each block of `size` into `low` and `high` [rows, blocks]."""
    for r in range(len(weight)):
        for block in range(low.shape[1]):
            part = weight[r, block * size : (block + 1) * size]
            least, largest = part[0], part[0]
            for x in part:
                least, largest = min(least, x), max(largest, x)
            low[r, block], high[r, block] = least, largest


@njit(forceinline=True, error_model="numpy")
def _value(code, scale, zero):
    """Return what ONNX Runtime's CPU computes: two products, each rounded, and their difference."""
    return _F(code) * scale - zero * scale


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_SUMS)
def measure(weight, costs, scales, points, size, codes, errors):
    """Write the sum of cost * (value - weight)^2 of each block into `errors` [rows, blocks]."""
    for r in range(len(weight)):
        for block in range(scales.shape[1]):
            scale, zero, total = scales[r, block], points[r, block], 0.0
            for j in range(block * size, min((block + 1) * size, weight.shape[1])):
                error = np.float64(_value(codes[r, j], scale, zero)) - np.float64(weight[r, j])
                total += np.float64(costs[r, j]) * error * error
            errors[r, block] = total


@njit(cache=True, nogil=True, error_model="numpy")
def round_to(weight, costs, scales, points, size, maxq, codes, errors):
    """Write the nearest codes on the grids, and what `measure` would write of them."""
    for r in range(len(weight)):
        for block in range(scales.shape[1]):
            scale, zero = scales[r, block], points[r, block]
            for j in range(block * size, min((block + 1) * size, weight.shape[1])):
                code = np.rint(weight[r, j] / scale + zero) if scale != 0 else _F(0)
                codes[r, j] = np.uint8(min(max(code, _F(0)), maxq))
    measure(weight, costs, scales, points, size, codes, errors)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_SUMS)
def least_squares(weight, costs, size, codes, scales, offsets):
    """Write scale and offset of each block for which the sum of cost * (code * scale + offset - weight)^2 is least.

    A block whose codes are all the same has no such scale, and gets 0.
    """
    for r in range(len(weight)):
        for block in range(scales.shape[1]):
            c = cq = cqq = cx = cqx = 0.0
            for j in range(block * size, min((block + 1) * size, weight.shape[1])):
                cost, q, x = np.float64(costs[r, j]), np.float64(codes[r, j]), np.float64(weight[r, j])
                c += cost
                cq += cost * q
                cqq += cost * q * q
                cx += cost * x
                cqx += cost * q * x
            determinant = c * cqq - cq * cq
            scale = 0.0
            if determinant > 1e-12 * c * cqq:
                scale = (c * cqx - cq * cx) / determinant
            scales[r, block] = scale
            offsets[r, block] = (cx - scale * cq) / c if c > 0 else 0.0
