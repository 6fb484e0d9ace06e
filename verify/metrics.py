"""Figures over two models' outputs, summed window by window in chunks that bound the memory.

Perplexity is exp of the mean negative log-likelihood of the next token. The divergence is
KL(reference || candidate) = sum_v p(v) (log p(v) - log q(v)), in nats, the mean over all positions.
All logarithms are float64 log-softmax. The k most likely tokens are those of the k largest logits, the lower id
first among equal ones, so that every program finds the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TOP", "DifferenceMaximum", "LogitSums", "difference", "divergences", "logit_sums", "most_likely"]

TOP = 5
"""Most likely tokens that the wider agreement looks at."""

_BLOCK = 512
"""Logits whose maximum stands for them in the search of the most likely ones."""
_CHUNK = 1 << 20
"""Elements that are held in float64 at once; 8 MiB, small enough for the cache of most processors."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class LogitSums:
    """Sums over positions, to be added up over the windows."""

    positions: int = 0
    predicted: int = 0
    """Positions whose next token is known: one fewer than positions in every window."""
    nll_reference: float = 0.0
    """Sum over `predicted` of the next token's negative log-likelihood, in nats."""
    nll_candidate: float = 0.0
    kl: tuple[float, ...] = field(default=(), repr=False)
    """The divergence at each position, in order."""
    agreeing: int = 0
    """Positions where both models have the same most likely token."""
    shared: int = 0
    """Sum over positions of how many of the reference's `TOP` most likely tokens are among the candidate's."""

    def __add__(self, other: LogitSums) -> LogitSums:
        return LogitSums(
            positions=self.positions + other.positions,
            predicted=self.predicted + other.predicted,
            nll_reference=self.nll_reference + other.nll_reference,
            nll_candidate=self.nll_candidate + other.nll_candidate,
            kl=self.kl + other.kl,
            agreeing=self.agreeing + other.agreeing,
            shared=self.shared + other.shared,
        )

    @property
    def perplexity_reference(self) -> float | None:
        """Return the perplexity of the reference; None where no next token is known."""
        return _perplexity(self.nll_reference, self.predicted)

    @property
    def perplexity_candidate(self) -> float | None:
        """Return the perplexity of the candidate; inf where it gives a true next token no probability."""
        return _perplexity(self.nll_candidate, self.predicted)

    @property
    def kl_mean(self) -> float:
        """Return nats for each position."""
        return float(np.mean(self.kl))

    @property
    def kl_p99(self) -> float:
        """Return the 99th percentile over the positions, interpolated linearly between the two nearest."""
        return float(np.percentile(self.kl, 99))

    @property
    def kl_max(self) -> float:
        """Return the largest divergence of one position."""
        return max(self.kl)

    @property
    def top1_agreement(self) -> float:
        """Return the share of positions, 0 to 1, with the same most likely token."""
        return self.agreeing / self.positions

    def top5_agreement(self, vocabulary: int) -> float:
        """Return the mean share, 0 to 1, of the reference's five most likely tokens among the candidate's five."""
        return self.shared / (self.positions * min(TOP, vocabulary))


def logit_sums(reference: Array, candidate: Array, ids: npt.NDArray[np.int64]) -> LogitSums:
    """Sum up one window: logits [s, V] of both models, of any float type and without NaN, of the last s of `ids`."""
    length, vocabulary = reference.shape
    ids = ids[len(ids) - length :]
    rows = max(1, _CHUNK // vocabulary)
    total = LogitSums()
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        log_p = _log_softmax(reference[start:stop])
        log_q = _log_softmax(candidate[start:stop])
        best = [(most_likely(p), most_likely(q)) for p, q in zip(log_p, log_q, strict=True)]
        following = ids[start + 1 : stop + 1]
        at = np.arange(len(following))
        total += LogitSums(
            positions=stop - start,
            predicted=len(following),
            nll_reference=-float(log_p[at, following].sum()),
            nll_candidate=-float(log_q[at, following].sum()),
            kl=_divergence(log_p, log_q),
            agreeing=sum(int(p[0] == q[0]) for p, q in best),
            shared=sum(len(np.intersect1d(p, q)) for p, q in best),
        )
    return total


def divergences(reference: Array, candidate: Array) -> tuple[float, ...]:
    """Return KL(reference || candidate) of each row of logits [s, V], in nats."""
    rows = max(1, _CHUNK // reference.shape[1])
    found: tuple[float, ...] = ()
    for start in range(0, len(reference), rows):
        part = slice(start, start + rows)
        found += _divergence(_log_softmax(reference[part]), _log_softmax(candidate[part]))
    return found


@dataclass(frozen=True, kw_only=True)
class DifferenceMaximum:
    """The largest difference of one output so far."""

    max_abs: float = 0.0
    """max |a - b|; inf where one is NaN, or infinite and the other not."""
    magnitude: float = 0.0
    """max |a| over the finite values of the reference."""
    where: tuple[int, ...] = ()
    """(window, *index in the output) of max_abs; empty while nothing differs."""

    def __or__(self, other: DifferenceMaximum) -> DifferenceMaximum:
        larger = other if other.max_abs > self.max_abs else self
        return DifferenceMaximum(
            max_abs=larger.max_abs, magnitude=max(self.magnitude, other.magnitude), where=larger.where
        )

    @property
    def max_rel(self) -> float:
        """Return max |a - b| / max |a|, both over the whole output; inf where only the reference is zero."""
        if self.max_abs == 0.0:
            return 0.0
        return self.max_abs / self.magnitude if self.magnitude > 0.0 else float("inf")


def difference(reference: Array, candidate: Array, window: int = 0) -> DifferenceMaximum:
    """Find the largest difference of two arrays of one shape; NaN counts as inf, and so does a text that differs."""
    a, b = reference.reshape(-1), candidate.reshape(-1)
    if a.dtype == object:
        a, b = np.zeros(a.size), np.where(a == b, 0.0, np.inf)
    found = DifferenceMaximum()
    for start in range(0, a.size, _CHUNK):
        x = a[start : start + _CHUNK].astype(np.float64)
        y = b[start : start + _CHUNK].astype(np.float64)
        with np.errstate(invalid="ignore"):
            gap = np.abs(x - y)
        gap[x == y] = 0.0  # equal infinities, whose difference is NaN
        gap[np.isnan(gap)] = np.inf
        at = int(gap.argmax())
        index = np.unravel_index(start + at, reference.shape)
        finite = np.abs(x[np.isfinite(x)])
        found |= DifferenceMaximum(
            max_abs=float(gap[at]),
            magnitude=float(finite.max(initial=0.0)),
            where=(window, *(int(i) for i in index)),
        )
    return found


def _log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    """Return log(softmax) over the last axis in float64; -inf logits stay -inf."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def most_likely(row: Array, count: int = TOP) -> npt.NDArray[np.int64]:
    """Return the ids of the `count` largest of one row [V], the largest first; of equal ones the lower id first."""
    count = min(count, len(row))
    maxima = np.maximum.reduceat(row, np.arange(0, len(row), _BLOCK))
    # At least `count` elements reach the count-th largest of the blocks' maxima, and few others do.
    least = np.partition(maxima, -count)[-count] if len(maxima) >= count else -np.inf
    ids = np.flatnonzero(row >= least)
    return ids[np.lexsort((ids, -row[ids]))][:count]


def _divergence(log_p: npt.NDArray[np.float64], log_q: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return KL(p || q) of each row; a term with p = 0 is 0, even where q is 0 too.

    Rounding below zero, which no divergence is, is cut off.
    """
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = p * (log_p - log_q)
    terms[p == 0.0] = 0.0
    return tuple(max(float(row), 0.0) for row in terms.sum(axis=1))


def _perplexity(nll: float, count: int) -> float | None:
    """Return exp of the mean; inf where it would overflow, None of nothing."""
    if not count:
        return None
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nll / count)))
