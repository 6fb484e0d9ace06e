"""The second moments of a projection's inputs, made ready for `gptq`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DAMPING = 0.05
"""Of the mean diagonal, added to the diagonal: for texts that differ from the calibration's, and against rank loss."""
_STRONGEST = 10.0


@dataclass(frozen=True)
class Factor:
    """H and its factorization, which every row of every weight that reads one input shares."""

    hessian: npt.NDArray[np.float32]
    """H [K, K], damped, its mean diagonal one before that."""
    order: npt.NDArray[np.int64]
    """The columns by descending diagonal: the most used are rounded first, while all others can make up for it."""
    upper: npt.NDArray[np.float32]
    """U [K, K], in that order: the upper Cholesky factor of the inverse of H, H^-1 = U^T U."""


def factorize(hessian: npt.NDArray[np.float32], damping: float = DAMPING) -> Factor:
    """Return the factor of a mean of x x^T [K, K]; channels that are always zero count as unrelated to the others.

    A matrix that is not positive definite after damping is damped more.

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
    order = np.argsort(-diagonal, kind="stable")
    while damping < _STRONGEST:
        damped = full + np.diag(np.full(len(full), damping))
        try:
            lower = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)]))
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        return Factor(damped.astype(np.float32), order, np.ascontiguousarray(lower.T, np.float32))
    raise ValueError("it is no matrix of second moments: it stays indefinite however much it is damped")
