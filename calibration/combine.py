"""Means over all inputs of one weight: more than one where several projections read it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_tailor.calibration.file import InputStatistics

_FLOOR = 1e-3
"""Of the mean: what every channel is worth at least, for texts in which it says more than in the calibration's."""


def importance(statistics: Sequence[InputStatistics]) -> npt.NDArray[np.float32]:
    """Return the mean of x^2 [K], every channel a little above zero."""
    total = sum(each.count for each in statistics)
    mean = np.zeros(statistics[0].columns)
    for each in statistics:
        mean += each.mean_square() * (each.count / total)
    result: npt.NDArray[np.float32] = (mean + _FLOOR * mean.mean()).astype(np.float32)
    return result


def hessian(statistics: Sequence[InputStatistics]) -> npt.NDArray[np.float32]:
    """Return the mean of x x^T [K, K]."""
    if len(statistics) == 1:
        return statistics[0].hessian()
    total = sum(each.count for each in statistics)
    mean = np.zeros((statistics[0].columns,) * 2, np.float32)
    for each in statistics:
        mean += each.hessian() * np.float32(each.count / total)
    return mean
