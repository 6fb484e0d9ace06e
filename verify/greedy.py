"""How long two models that decode greedily say the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_tailor.verify.session import LanguageModel

__all__ = ["STEPS", "Greedy", "greedy", "prompts_of"]

PROMPTS = 4
"""Windows whose beginnings are prompts."""
PROMPT = 16
"""Tokens of a prompt; half of a window that has fewer than twice as many."""
STEPS = 32
"""Tokens that each model writes at most."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """What decoding the most likely token again and again showed."""

    lengths: tuple[int, ...]
    """For each prompt, the tokens that both models wrote before the first that differs; `steps` where none does."""
    steps: int
    """Tokens that were written at most. A token that ends a text does not end the writing."""

    @property
    def mean(self) -> float:
        """Return the mean length."""
        return sum(self.lengths) / len(self.lengths)


def greedy(
    ours: LanguageModel, theirs: LanguageModel, windows: Ids, done: Callable[[int], None], *, steps: int = STEPS
) -> Greedy | None:
    """Decode from the beginnings of the first windows [n, s]; None for models without a cache or without logits.

    `done` is told of each prompt's tokens when it is finished.

    Raises:
        ModelError: a run fails.

    """
    if not (ours.has_past and theirs.has_past and ours.logits):
        return None
    prompts = prompts_of(windows)
    lengths = []
    for prompt in prompts:
        lengths.append(_length(ours, theirs, prompt[None, :], steps))
        done(prompts.shape[1] + steps)
    return Greedy(lengths=tuple(lengths), steps=steps)


def prompts_of(windows: Ids) -> Ids:
    """Return the prompts [n, s] that `greedy` takes from windows."""
    return windows[:PROMPTS, : min(PROMPT, windows.shape[1] // 2)]


def _length(ours: LanguageModel, theirs: LanguageModel, prompt: Ids, steps: int) -> int:
    """Count the tokens that both write alike after the prompt [1, s]."""
    assert ours.logits is not None
    pair = (ours, theirs)
    outputs = [model.prefill(prompt) for model in pair]
    caches = [model.cache(each, prompt) for model, each in zip(pair, outputs, strict=True)]
    for step in range(steps):
        best = [int(np.argmax(each[ours.logits][0, -1])) for each in outputs]
        if best[0] != best[1]:
            return step
        if step + 1 == steps:
            break
        ids = np.array([[best[0]]], np.int64)
        runs = [model.decode(ids, cache) for model, cache in zip(pair, caches, strict=True)]
        outputs, caches = [run[0] for run in runs], [run[1] for run in runs]
    return steps
