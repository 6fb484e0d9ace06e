"""The compiled loops of `gptq`: rows on one thread, columns in order. See `kernels` for how rows are shared out."""

# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator"

import numpy as np
from numba import njit
from numba.core import event

from onnx_tailor.quant import compiling


class _Teller(event.Listener):
    """Tells that these loops are compiled, which numba does not where it finds them on the disk."""

    def on_start(self, _):
        compiling.began()

    def on_end(self, _):
        compiling.ended()


event.register("numba:compile", _Teller())

_F = np.float32
_SUMS = {"reassoc", "contract", "nsz"}


@njit(cache=True, nogil=True, fastmath=_SUMS)
def round_columns(work, upper, order, start, stop, scales, points, block_size, maxq, codes, errors):
    """Round the columns `start` to `stop` of `work` [rows, K], whose columns stand in `order`.

    Each column's error is spread over the columns up to `stop` that follow, and kept in `errors` [rows, stop - start],
    divided by the factor's diagonal, for those behind `stop`. The codes [rows, padded K] stand in the weight's order.
    """
    for r in range(len(work)):
        row = work[r]
        for j in range(start, stop):
            column = order[j]
            block = column // block_size
            scale, zero = scales[r, block], points[r, block]
            below = np.floor(zero)
            code = np.rint(row[j] / scale + (zero - below)) + below
            code = min(max(code, _F(0)), maxq)
            codes[r, column] = np.uint8(code)
            error = (row[j] - (code - zero) * scale) / upper[j, j]
            errors[r, j - start] = error
            following = upper[j]
            for k in range(j + 1, stop):
                row[k] -= error * following[k]


@njit(cache=True, nogil=True, fastmath=_SUMS)
def descend(gradient, hessian, scales, block_size, maxq, codes, sweeps):
    """Move single codes to the least of the quadratic error until none moves, or for `sweeps` rounds.

    `gradient` [rows, K] is (value - weight) H and follows every move.
    """
    k = len(hessian)
    for r in range(len(codes)):
        slope, own = gradient[r], codes[r]
        for _ in range(sweeps):
            moved = False
            for j in range(k):
                curvature = hessian[j, j]
                if not curvature > 0:
                    continue
                scale = scales[r, j // block_size]
                before = _F(own[j])
                code = np.rint(before - slope[j] / (curvature * scale))
                code = min(max(code, _F(0)), maxq)
                if code != before:
                    own[j] = np.uint8(code)
                    step = (code - before) * scale
                    line = hessian[j]
                    for i in range(k):
                        slope[i] += step * line[i]
                    moved = True
            if not moved:
                break
