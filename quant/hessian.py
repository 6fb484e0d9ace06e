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
"""Of the drift of the inputs that the weights make up for; the rest differs from text to text."""
_DRIFT_DAMPING = 0.2
"""Of the mean diagonal, where weights are fitted to drifted inputs. With `SHARE` by measurement: docs/quality.md."""


class Moments(NamedTuple):
    """What is known of the inputs x of a projection, or of the inputs z that it has where what is before is rounded."""

    hessian: npt.NDArray[np.float32]
    """[K, K]: the mean of x x^T, or of z z^T."""
    drift: npt.NDArray[np.float32] | None = None
    """[K, K]: the mean of (x - z) z^T."""


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
    """S [K, K]: weights W + W S yield of drifted inputs about what W yields of the others."""


def factorize(
    hessian: npt.NDArray[np.float32], damping: float = DAMPING, drift: npt.NDArray[np.float32] | None = None
) -> Factor:
    """Return the factor of a mean of x x^T [K, K]; channels that are always zero count as unrelated to the others.

    A matrix that is not positive definite after damping is damped more. With the mean D of (x - z) z^T and that of
    z z^T as H, the W' that brings W' z nearest to W x is W + W D H^-1 (least squares, as in GPTAQ, arXiv:2504.02692,
    and Qronos, arXiv:2505.11695).

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
    shift = None if drift is None else _shift(full, drift.astype(np.float64) / mean)
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


def _shift(hessian: npt.NDArray[np.float64], drift: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return S of a drift, both divided by the mean diagonal of the second moments."""
    if not np.isfinite(drift).all():
        raise ValueError("its drift holds a NaN or an infinity")
    damped = hessian + np.diag(np.full(len(hessian), _DRIFT_DAMPING))
    return np.ascontiguousarray(SHARE * np.linalg.solve(damped, drift.T).T, np.float32)
