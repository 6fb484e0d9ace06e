"""Run a reference and a candidate on the same tokens and measure how far apart they are."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_tailor.errors import ModelError, UsageError
from onnx_tailor.progress import Progress, Silent
from onnx_tailor.verify.facts import reads_tokens
from onnx_tailor.verify.greedy import STEPS, Greedy, greedy, prompts_of
from onnx_tailor.verify.metrics import DifferenceMaximum, LogitSums, difference, logit_sums
from onnx_tailor.verify.session import LanguageModel, Optimization
from onnx_tailor.verify.tokens import Tokens, random_tokens
from onnx_tailor.verify.worst import WorstToken, worst_of, worst_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["Comparison", "OutputDifference", "compare", "compare_each", "jsonable"]

Array = npt.NDArray[Any]

_DECODED = 16
"""Tokens over which decoding step by step is compared with one prefill; the first half is prefilled."""


@dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """How far one output is from the reference's, over all windows."""

    name: str
    max_abs: float
    """max |a - b|; inf where one is NaN, or infinite and the other not."""
    max_rel: float
    """max |a - b| / max |a|, both maxima over the whole output, a being the reference."""
    where: tuple[int, ...]
    """(window, *index in the output) of max_abs; empty where nothing differs."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` measured. The figures of the logits are None for models without logits."""

    reference: str
    """The reference's file."""
    candidate: str
    """The candidate's file."""
    tokens: int
    """Tokens that each model was run on."""
    source: str
    """Where the tokens come from."""
    random: bool
    """Whether the tokens are random; the two perplexities then say nothing about quality."""
    perplexity_reference: float | None
    perplexity_candidate: float | None
    kl_mean: float | None
    """Mean of KL(reference || candidate) over the tokens, in nats."""
    kl_p99: float | None
    """The 99th percentile over the tokens, interpolated linearly."""
    kl_max: float | None
    """The largest divergence after one token; `worst` says where."""
    top1_agreement: float | None
    """Share of the tokens, 0 to 1, after which both models hold the same next token most likely."""
    top5_agreement: float | None
    """Mean share, 0 to 1, of the reference's five most likely next tokens that are among the candidate's five."""
    worst: tuple[WorstToken, ...]
    """The tokens after which the models are furthest apart, the worst first; none where they nowhere differ."""
    greedy: Greedy | None
    """How long both say the same when they decode greedily; None for models without a cache or without logits."""
    outputs: tuple[OutputDifference, ...]
    only_reference: tuple[str, ...]
    """Outputs that the candidate lacks."""
    only_candidate: tuple[str, ...]
    """Outputs that the reference lacks."""
    decode_difference: float | None
    """Largest difference of the candidate's logits decoded token by token from those of its own prefill,
    relative to the largest of these; None for models without a cache or without logits."""
    decode_difference_reference: float | None
    """The same of the reference: what the arithmetic alone brings."""
    notes: tuple[str, ...] = ()
    """What a model needed to run that a correct file does not."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; numbers that JSON lacks become the strings "inf", "-inf" and "nan"."""
        found: dict[str, Any] = jsonable(asdict(self))
        return found


def compare(
    reference: Path,
    candidate: Path,
    tokens: Tokens | None = None,
    *,
    provider: str = "CPUExecutionProvider",
    optimization: Optimization = "all",
    progress: Progress | None = None,
) -> Comparison:
    """Run both models on `tokens`, or on random ones where there are none, and measure the difference.

    Raises:
        ModelError: a model does not load or run, yields NaN logits, or the two share no output of one shape.
        UsageError: a token is beyond the vocabulary, or the provider is missing.

    """
    (found,) = compare_each(
        reference, [candidate], tokens, provider=provider, optimization=optimization, progress=progress
    )
    return found


def compare_each(
    reference: Path,
    candidates: Sequence[Path],
    tokens: Tokens | None = None,
    *,
    provider: str = "CPUExecutionProvider",
    optimization: Optimization = "all",
    progress: Progress | None = None,
) -> Iterator[Comparison]:
    """Compare the reference with one candidate after the other, as `compare` does.

    Each window is run by the one model and then by the other, so that memory holds two sessions and the
    outputs of one window of each, whatever the number of windows and candidates.
    """
    watch = progress or Silent()
    ours = LanguageModel(reference, provider=provider, optimization=optimization, role="reference")
    chosen = tokens or random_tokens(ours.vocabulary_size if reads_tokens(reference) else 2)
    if tokens is not None and ours.knows_vocabulary and int(tokens.windows.max()) >= ours.vocabulary_size:
        raise UsageError(
            f"The token {int(tokens.windows.max())} of {tokens.source} is beyond the vocabulary of "
            f"{reference}, which has {ours.vocabulary_size}; give tokens of this model's own tokenizer."
        )
    for number, candidate in enumerate(candidates, 1):
        theirs = LanguageModel(candidate, provider=provider, optimization=optimization, role="candidate")
        prompts = prompts_of(chosen.windows)
        decoded = prompts.size + len(prompts) * STEPS if ours.has_past and theirs.has_past and ours.logits else 0
        which = f" ({number} of {len(candidates)})" if len(candidates) > 1 else ""
        watch.start(f"comparing {candidate.name}{which}", int(chosen.windows.size) + decoded, unit="tokens")
        yield _compare(ours, theirs, chosen, watch.advance)
        del theirs  # before the next one is loaded


def _compare(ours: LanguageModel, theirs: LanguageModel, tokens: Tokens, done: Callable[[int], None]) -> Comparison:
    """Measure one pair; `done` is told of the tokens."""
    common = _common_outputs(ours, theirs)
    sums, differences, worst = _windows(ours, theirs, tokens, common, done)
    return Comparison(
        reference=str(ours.path),
        candidate=str(theirs.path),
        tokens=int(tokens.windows.size),
        source=tokens.source,
        random=tokens.random,
        perplexity_reference=sums.perplexity_reference if sums else None,
        perplexity_candidate=sums.perplexity_candidate if sums else None,
        kl_mean=sums.kl_mean if sums else None,
        kl_p99=sums.kl_p99 if sums else None,
        kl_max=sums.kl_max if sums else None,
        top1_agreement=sums.top1_agreement if sums else None,
        top5_agreement=sums.top5_agreement(ours.vocabulary_size) if sums else None,
        worst=tuple(worst),
        greedy=greedy(ours, theirs, tokens.windows, done),
        outputs=tuple(
            OutputDifference(name=name, max_abs=found.max_abs, max_rel=found.max_rel, where=found.where)
            for name, found in differences.items()
        ),
        only_reference=tuple(name for name in ours.outputs if name not in common),
        only_candidate=tuple(name for name in theirs.outputs if name not in common),
        decode_difference=_decode_difference(theirs, tokens.windows[:1, :_DECODED]),
        decode_difference_reference=_decode_difference(ours, tokens.windows[:1, :_DECODED]),
        notes=tuple(model.note for model in (ours, theirs) if model.note),  # the last, since any run may bring one
    )


def _common_outputs(ours: LanguageModel, theirs: LanguageModel) -> tuple[str, ...]:
    """Return the outputs that both have, the logits among them where the reference has any."""
    common = tuple(name for name in ours.outputs if name in theirs.outputs)
    if not common:
        raise ModelError(
            f"The outputs of {theirs.path} ({', '.join(theirs.outputs)}) have no name in common with those of "
            f"{ours.path} ({', '.join(ours.outputs)})."
        )
    if ours.logits is not None and ours.logits not in common:
        raise ModelError(
            f"The candidate {theirs.path} has no output {ours.logits}; its outputs are {', '.join(theirs.outputs)}."
        )
    return common


def _windows(
    ours: LanguageModel,
    theirs: LanguageModel,
    tokens: Tokens,
    common: tuple[str, ...],
    done: Callable[[int], None],
) -> tuple[LogitSums | None, dict[str, DifferenceMaximum], list[WorstToken]]:
    """Run every window and add up; the sums are None without logits."""
    sums = LogitSums()
    differences = {name: DifferenceMaximum() for name in common}
    worst: list[WorstToken] = []
    for number, window in enumerate(tokens.windows):
        ids = window[None, :]
        first = ours.prefill(ids)
        second = theirs.prefill(ids)
        for name in common:
            _same_shape(name, first[name], second[name])
            differences[name] |= difference(first[name], second[name], number)
        if ours.logits is not None:
            for model, outputs in ((ours, first), (theirs, second)):
                _refuse_nan(model, outputs[ours.logits], number)
            logits = (first[ours.logits][0], second[ours.logits][0])
            found = logit_sums(*logits, window)
            sums += found
            worst = worst_tokens(worst + worst_of(tokens, number, found.kl, logits))
            del logits
        del first, second  # a large vocabulary's logits, before the next window's are made
        done(len(window))
    return (sums if ours.logits is not None else None), differences, worst


def _decode_difference(model: LanguageModel, ids: npt.NDArray[np.int64]) -> float | None:
    """Compare the logits of ids [1, s] prefilled at once with half of them decoded token by token."""
    if not model.has_past or model.logits is None:
        return None
    half = ids.shape[1] // 2
    whole = model.prefill(ids)[model.logits]
    if whole.shape[1] != ids.shape[1]:  # those of the last token alone
        return None
    outputs = model.prefill(ids[:, :half])
    cache = model.cache(outputs, ids[:, :half])
    worst = difference(whole[:, :half], outputs[model.logits])
    for at in range(half, ids.shape[1]):
        outputs, cache = model.decode(ids[:, at : at + 1], cache)
        worst |= difference(whole[:, at : at + 1], outputs[model.logits])
    return worst.max_rel


def _same_shape(name: str, reference: Array, candidate: Array) -> None:
    if reference.shape != candidate.shape:
        raise ModelError(
            f"The output {name} has shape {list(reference.shape)} in the reference and "
            f"{list(candidate.shape)} in the candidate; they are not the same model."
        )


def _refuse_nan(model: LanguageModel, logits: Array, window: int) -> None:
    """Raise where there is a NaN: no figure over such logits means anything."""
    rows = np.flatnonzero([bool(np.isnan(row).any()) for row in logits[0]])
    if rows.size:
        raise ModelError(
            f"The {model.role} {model.path} yields NaN logits, first in window {window} at position {int(rows[0])}."
        )


def jsonable(value: Any) -> Any:
    """Return `value` with tuples as lists and non-finite numbers as strings."""
    if isinstance(value, dict):
        return {key: jsonable(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
