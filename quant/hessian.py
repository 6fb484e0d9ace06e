"""The second moments of a projection's inputs, made ready for `gptq`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DAMPING = 0.05
"""Of the mean diagonal, added to the diagonal: for texts that differ from the calibration's, and against rank loss."""
_STRONGEST = 10.0
SHARE = 0.5
"""Of the drift that the weights make up for: what they learn of the rest does not hold for other texts."""
DRIFT_DAMPING = 0.2
"""Of the mean diagonal, where drift is fitted. Both by measurement: docs/quality.md."""


class Moments(NamedTuple):
    """What is known of the inputs x of a projection, which becomes z where the weights before it are quantized."""

    hessian: npt.NDArray[np.float32]
    """[K, K]: the mean of x x^T."""
    drift: npt.NDArray[np.float32] | None = None
    """D [K, K], as `fit_drift` finds it: x - z is about D z."""


@dataclass(frozen=True)
class Factor:
    """H and its factorization, which every row of every weight that reads one input shares."""

    hessian: npt.NDArray[np.float32]
    """H [K, K], damped, its mean diagonal one before that."""
    order: npt.NDArray[np.int64]
    """The columns by descending diagonal: the most used are rounded first, while all others can make up for it."""
    upper: npt.NDArray[np.float32]
    """U [K, K], in that order: the upper Cholesky factor of the inverse of H, H^-1 = U^T U."""
    shift: npt.NDArray[np.float32] | None = None
    """S [K, K]: W + W S are rounded in the place of the weights W, since their inputs drift."""


def factorize(
    hessian: npt.NDArray[np.float32], damping: float = DAMPING, drift: npt.NDArray[np.float32] | None = None
) -> Factor:
    """Return the factor of a mean of x x^T [K, K]; channels that are always zero count as unrelated to the others.

    A matrix that is not positive definite after damping is damped more. Of W x = W z + W (x - z) the `drift` D tells
    W + W D of z; the weights go a `SHARE` of that way.

    Raises:
        ValueError: it holds a NaN or an infinity, is zero, or is no matrix of second moments.
    """
    full = hessian.astype(np.float64)
    if not np.isfinite(full).all():
        raise ValueError("it holds a NaN or an infinity")
    diagonal = np.diag(full).copy()
    mean = float(diagonal.mean())
    if not mean > 0 or float(diagonal.min()) < 0:
        raise ValueError("its diagonal is not that of a mean of squares")
    full /= mean
    shift = None if drift is None else _shift(drift)
    order = np.argsort(-diagonal, kind="stable")
    while damping < _STRONGEST:
        damped = full + np.diag(np.full(len(full), damping))
        try:
            lower = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)]))
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        return Factor(damped.astype(np.float32), order, np.ascontiguousarray(lower.T, np.float32), shift)
    raise ValueError("it is no matrix of second moments: it stays indefinite however much it is damped")


def _shift(drift: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not np.isfinite(drift).all():
        raise ValueError("its drift holds a NaN or an infinity")
    return np.float32(SHARE) * drift


def fit_drift(hessian: npt.NDArray[np.float32], moved: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return D [K, K] that brings D z nearest to x - z, by the means of z z^T and of (x - z) z^T, both [K, K].

    D = M H^-1, damped: the least squares of GPTAQ (arXiv:2504.02692) and Qronos (arXiv:2505.11695), for all weights
    that read the input. Zeros where z is always zero.

    Raises:
        ValueError: a mean holds a NaN or an infinity.
    """
    full = hessian.astype(np.float64)
    if not (np.isfinite(full).all() and np.isfinite(moved).all()):
        raise ValueError("it holds a NaN or an infinity")
    full += np.diag(np.full(len(full), DRIFT_DAMPING * np.diag(full).mean() or 1.0))
    return np.ascontiguousarray(np.linalg.solve(full, moved.T.astype(np.float64)).T, np.float32)
