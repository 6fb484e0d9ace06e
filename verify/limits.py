"""Limits on what `compare` measured: the names that `--limit NAME=VALUE` knows, and which are exceeded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_tailor.errors import UsageError
from onnx_tailor.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnx_tailor.verify.compare import Comparison

__all__ = ["LIMITS", "Limit", "exceeded", "parse_limits"]


@dataclass(frozen=True)
class Limit:
    """One figure that can be limited."""

    what: str
    """The figure, as it stands in a sentence."""
    value: Callable[[Comparison], float | None]
    """Reads the figure; None where the models do not have it."""
    least: bool = False
    """Whether the limit is the least value allowed rather than the greatest."""


def _perplexity(found: Comparison) -> float | None:
    if found.perplexity_reference is None or found.perplexity_candidate is None:
        return None
    return found.perplexity_candidate / found.perplexity_reference


LIMITS: Mapping[str, Limit] = {
    "kl": Limit("mean KL divergence in nats", lambda found: found.kl_mean),
    "kl99": Limit("99th percentile of the KL divergence", lambda found: found.kl_p99),
    "klmax": Limit("largest KL divergence", lambda found: found.kl_max),
    "perplexity": Limit("perplexity over the reference's", _perplexity),
    "top1": Limit("top-1 agreement, 0 to 1", lambda found: found.top1_agreement, least=True),
    "top5": Limit("top-5 agreement, 0 to 1", lambda found: found.top5_agreement, least=True),
    "greedy": Limit(
        "mean length of equal greedy text in tokens",
        lambda found: found.greedy.mean if found.greedy else None,
        least=True,
    ),
    "decode": Limit("difference of decoding from prefill", lambda found: found.decode_difference),
    "output": Limit(
        "largest difference of an output, relative to its largest value",
        lambda found: max(output.max_rel for output in found.outputs),
    ),
}
"""By the name on the command line."""


_SHARES = frozenset({"top1", "top5"})
_RANGE = {True: "never below 0 or above 1", False: "never below 0"}


def parse_limits(settings: Sequence[str]) -> dict[str, float]:
    """Read "kl=0.1" and the like.

    Raises:
        UsageError: a setting has another form, names no figure, or a value that the figure never has.

    """
    found = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if name not in LIMITS:
            advice = nearest(name, tuple(LIMITS)) or f"; the figures are {', '.join(LIMITS)}"
            raise UsageError(f"--limit {setting}: no figure is called {name!r}{advice}")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not equals or not math.isfinite(value):
            raise UsageError(f"--limit {setting}: give a number behind the equals sign, as in --limit kl=0.1")
        largest = 1 if name in _SHARES else math.inf
        if not 0 <= value <= largest:
            advice = f"; did you mean {value / 100:g}?" if largest < value <= 100 else ""
            raise UsageError(f"--limit {setting}: the {LIMITS[name].what} is {_RANGE[name in _SHARES]}{advice}")
        found[name] = value
    return found


def exceeded(found: Comparison, limits: Mapping[str, float]) -> list[str]:
    """Return a sentence for each limit that `found` exceeds; NaN exceeds every limit.

    Raises:
        UsageError: the models do not have a figure that is limited.

    """
    lines = []
    for name, bound in limits.items():
        limit = LIMITS[name]
        value = limit.value(found)
        if value is None:
            lacking = "no cache" if name in {"greedy", "decode"} else "no logits"
            raise UsageError(f"--limit {name}: these models have {lacking}, so there is no {limit.what}")
        within = value >= bound if limit.least else value <= bound
        if not within:
            side = "below" if limit.least else "above"
            lines.append(f"{name}: the {limit.what} is {value:.4g}, {side} the limit {bound:g}")
    return lines
