"""The tokens after which two models are furthest apart, with the text around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnx_tailor.verify.metrics import most_likely

if TYPE_CHECKING:
    from onnx_tailor.verify.tokens import Tokens

__all__ = ["SHOWN", "WorstToken", "worst_of", "worst_tokens"]

SHOWN = 10
"""Positions that are kept."""
_BEFORE = 12
"""Tokens of context in front of the position."""

Row = npt.NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class WorstToken:
    """One position, and what each model would say next."""

    window: int
    position: int
    """The position within the window whose logits are meant; the text up to it is what both models read."""
    kl: float
    """KL(reference || candidate) there, in nats."""
    context: str
    """The text up to the position, its last tokens; ids in brackets where no tokenizer is known."""
    following: str | None
    """What the text says next; None at the end of a window."""
    reference: str
    """What the reference holds most likely."""
    candidate: str
    """What the candidate holds most likely."""


def worst_of(tokens: Tokens, window: int, kl: tuple[float, ...], logits: tuple[Row, Row]) -> list[WorstToken]:
    """Return the worst positions of one window, given its divergences and both logits [s, V] of its last s tokens."""
    ids = tokens.windows[window]
    before = len(ids) - len(kl)
    order = np.argsort(np.negative(kl), kind="stable")[:SHOWN]
    found = []
    for row in (int(position) for position in order if kl[position] > 0.0):
        best = [int(most_likely(rows[row], 1)[0]) for rows in logits]
        at = before + row
        found.append(
            WorstToken(
                window=window,
                position=at,
                kl=kl[row],
                context=_spell(tokens, ids[max(0, at + 1 - _BEFORE) : at + 1]),
                following=_spell(tokens, ids[at + 1 : at + 2]) if at + 1 < len(ids) else None,
                reference=_spell(tokens, np.array(best[:1])),
                candidate=_spell(tokens, np.array(best[1:])),
            )
        )
    return found


def worst_tokens(found: list[WorstToken]) -> list[WorstToken]:
    """Return the worst of several windows' worst, the worst first."""
    return sorted(found, key=lambda each: (-each.kl, each.window, each.position))[:SHOWN]


def _spell(tokens: Tokens, ids: npt.NDArray[np.int64]) -> str:
    if tokens.spell is None:
        return str([int(each) for each in ids])
    return tokens.spell([int(each) for each in ids])
