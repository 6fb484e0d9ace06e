"""Which of the candidate's weights cost what: each alone in the otherwise original model.

The reference runs once as it is and once for each weight that the candidate stores otherwise, with that weight's values
as the candidate has them. KL(reference || reference with that one weight) is the weight's own share; for small errors
the shares of all weights add up to about the candidate's own divergence.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.file.watch import let_override, serialize, weights_folder
from onnx_tailor.graph.meaning.stored_weights import StoredWeight
from onnx_tailor.progress import Progress, Silent
from onnx_tailor.verify.metrics import divergences
from onnx_tailor.verify.pairs import Pair, pair_weights
from onnx_tailor.verify.session import LanguageModel

if TYPE_CHECKING:
    from onnx_tailor.verify.tokens import Tokens

__all__ = ["Blame", "Share", "blame"]

TOKENS = 256
"""Tokens of the first windows that every weight is tried on."""

_ODD_RATIO, _ODD_LEAST = 4.0, 0.1
"""A row is odd whose relative error is this many times the median of its weight, and this much at least."""
_BETTER: Mapping[int, int | str] = {2: 4, 4: 8, 8: "float"}
"""The bits that mend a weight of so many."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one weight of the candidate does to the otherwise original model."""

    label: str
    """Where it stands, as "layer 3 down"."""
    layer: int | None
    role: str | None
    weight: str
    """Its name in the reference."""
    kl: float
    """Mean KL(reference || reference with this weight as the candidate has it) over the tokens, in nats."""
    bits: int | None
    """As the candidate stores it; None for float."""
    mend: str | None
    """An entry of quantize's `nodes` that would store it better, several lines where the candidate has divided the
    weight; None where it is in float already."""
    mend_bytes: int
    """About how many bytes that would add."""
    relative_error: float
    """The median over the weight's rows of ||candidate - reference|| / ||reference||."""
    odd_row: int | None
    """A row that differs so much more than the others that no rounding explains it; None where there is none."""
    odd_row_error: float
    """That row's own relative error; 0 where there is none."""


@dataclass(frozen=True, kw_only=True)
class Blame:
    """The weights' shares, the largest first."""

    shares: tuple[Share, ...]
    kl: float
    """Mean KL(reference || candidate) over the same tokens."""
    tokens: int
    skipped: tuple[str, ...]
    """Weights that could not be tried, each with the reason."""


def blame(reference: Path, candidate: Path, tokens: Tokens, *, progress: Progress | None = None) -> Blame:
    """Try every weight of the candidate that differs from the reference's alone in the reference.

    Memory holds the reference, its logits of one window twice, and the values of one weight at a time.

    Raises:
        ModelError: a model does not load or run, or has no logits.

    """
    watch = progress or Silent()
    windows = tokens.windows[: max(1, TOKENS // tokens.windows.shape[1]), :TOKENS]
    whole = _whole(reference, candidate, windows)
    model = load(reference)
    found, skipped = pair_weights(model, load(candidate))
    errors = [pair.row_errors() for pair in found]
    pairs = [pair for pair, each in zip(found, errors, strict=True) if each.any()]
    errors = [each for each in errors if each.any()]
    names = [value for pair in pairs for value in pair.initializers]
    let_override(model, names)
    runner = LanguageModel(reference, role="reference", graph=serialize(model), folder=weights_folder(model))
    sums = np.zeros(len(pairs))
    watch.start("blaming", int(windows.size) * (len(pairs) + 1), unit="tokens")
    for window in windows:
        ids = window[None, :]
        own = _logits(runner, ids, {})
        watch.advance(len(window))
        for number, pair in enumerate(pairs):
            sums[number] += sum(divergences(own, _logits(runner, ids, pair.override())))
            watch.advance(len(window))
    shares = [_share(*each, windows.size) for each in zip(pairs, errors, sums, strict=True)]
    return Blame(
        shares=tuple(sorted(shares, key=lambda share: (-share.kl, share.label))),
        kl=whole,
        tokens=int(windows.size),
        skipped=tuple(skipped),
    )


def _whole(reference: Path, candidate: Path, windows: npt.NDArray[np.int64]) -> float:
    """Return the candidate's own mean divergence over the windows."""
    ours = LanguageModel(reference, role="reference")
    theirs = LanguageModel(candidate, role="candidate")
    if ours.logits is None or theirs.logits is None:
        raise ModelError(f"{reference} has no logits, so no divergence that a weight could have a share in.")
    total = 0.0
    for window in windows:
        total += sum(divergences(_logits(ours, window[None, :], {}), _logits(theirs, window[None, :], {})))
    return total / windows.size


def _logits(model: LanguageModel, ids: npt.NDArray[np.int64], weights: Mapping[str, npt.NDArray[Any]]) -> Any:
    assert model.logits is not None
    return model.prefill(ids, given=weights)[model.logits][0]


def _share(pair: Pair, errors: npt.NDArray[np.float64], kl: float, tokens: int) -> Share:
    mark = pair.ours.marks[0] if pair.ours.marks else None
    better = _BETTER.get(pair.bits) if pair.bits is not None else None
    rows, columns = pair.ours.shape
    median, worst = float(np.median(errors)), int(np.argmax(errors))
    odd = errors[worst] >= max(_ODD_LEAST, _ODD_RATIO * median)
    more = (32 if better == "float" else int(better or 0)) - (pair.bits or 0)
    return Share(
        label=", ".join(mark.label for mark in pair.ours.marks) or pair.ours.name,
        layer=mark.layer if mark else None,
        role=mark.role if mark else None,
        weight=pair.ours.initializers[0].name or "",
        kl=float(kl) / tokens,
        bits=pair.bits,
        mend=None if better is None else _entries(pair, better),
        mend_bytes=0 if better is None else rows * columns * more // 8,
        relative_error=median,
        odd_row=worst if odd else None,
        odd_row_error=float(errors[worst]) if odd else 0.0,
    )


def _entries(pair: Pair, bits: int | str) -> str:
    """Return the entries of `nodes` that name this weight and no other, one a line.

    Where the candidate has divided it, the rule has to name the parts, since the recipe divides before it quantizes.
    """
    weights = pair.theirs if len(pair.theirs) > 1 else (pair.ours,)
    return "\n".join(_entry(weight, bits) for weight in weights)


def _entry(weight: StoredWeight, bits: int | str) -> str:
    """Return an entry of `nodes` that names this weight and no other."""
    marks = [mark for mark in weight.marks if mark.role != "embedding"] or list(weight.marks)
    if marks and marks[0].layer is not None and marks[0].alone:
        return f'role:{marks[0].role}: {{bits: {bits}, layers: "{marks[0].layer}"}}'
    if marks and marks[0].layer is None and marks[0].alone:
        return f"role:{marks[0].role}: {bits}"
    return f'"{glob.escape(weight.name)}": {bits}'
