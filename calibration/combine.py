"""Means over all inputs of one weight: more than one where several projections read it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_tailor.calibration.file import InputStatistics
from onnx_tailor.quant import Moments

_FLOOR = 1e-3
"""Of the mean: what every channel is worth at least, for texts in which it says more than in the calibration's."""
EMBEDDED = 0.2
"""Of the mean, for a head that also is the table: its rows enter the model as they are, where every channel counts, and
no input tells how much. By measurement on Gemma 3 270M (docs/quality.md): from 0.1 to 0.5 is nearly as good."""


def importance(statistics: Sequence[InputStatistics], spread: float = 0.0) -> npt.NDArray[np.float32]:
    """Return the mean of x^2 [K], every channel a little above zero; `spread` of the mean is added to each."""
    total = sum(each.count for each in statistics)
    mean = np.zeros(statistics[0].columns)
    for each in statistics:
        mean += each.mean_square() * (each.count / total)
    return floored(mean, spread)


def floored(mean: npt.NDArray[np.floating], spread: float = 0.0) -> npt.NDArray[np.float32]:
    """Return the mean of x^2 [K], every channel a little above zero; `spread` of the mean is added to each."""
    result: npt.NDArray[np.float32] = (mean + (_FLOOR + spread) * mean.mean()).astype(np.float32)
    return result


def moments(statistics: Sequence[InputStatistics], spread: float = 0.0) -> Moments:
    """Return what gptq needs to know of the inputs, and of one alone how it drifts, if that is known."""
    drifts = len(statistics) == 1 and statistics[0].has_drift
    return Moments(hessian(statistics, spread), statistics[0].drift() if drifts else None)


def hessian(statistics: Sequence[InputStatistics], spread: float = 0.0) -> npt.NDArray[np.float32]:
    """Return the mean of x x^T [K, K]; `spread` of its mean diagonal is added to the diagonal."""
    total = sum(each.count for each in statistics)
    mean = statistics[0].hessian()
    mean *= np.float32(statistics[0].count / total)
    for each in statistics[1:]:
        mean += each.hessian() * np.float32(each.count / total)
    diagonal = np.einsum("kk->k", mean)
    diagonal += np.float32(spread) * diagonal.mean()
    return mean
