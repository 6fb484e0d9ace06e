"""Where two models part: how far apart the values inside them are, place by place.

The places are matched by their meaning (see `graph.meaning.landmarks`); where the graphs share none, by the names of
values that both have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.constants import FLOATS
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.file.watch import serialize, watch, weights_folder
from onnx_tailor.graph.meaning.landmarks import find_landmarks
from onnx_tailor.progress import Progress, Silent
from onnx_tailor.verify.session import LanguageModel

if TYPE_CHECKING:
    from onnx_tailor.graph.model import TailorModel
    from onnx_tailor.verify.tokens import Tokens

__all__ = ["Point", "Trace", "trace"]

TOKENS = 512
"""Tokens of the first windows that are traced; what differs at all differs there."""
_OUTPUT = "onnx_tailor.trace."
_STANDS_OUT = 8.0
"""A channel whose error is this many times the median of its place stands out; rounding Gemma 3 270M to 4 bits makes
channels with up to 5.6 times the median."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """How far one value of the candidate is from the reference's, over all tokens."""

    label: str
    """The place, as "layer 3 down", or the value's name."""
    layer: int | None
    role: str | None
    relative_error: float
    """||candidate - reference|| / ||reference||, Euclidean norms over all tokens and channels."""
    channel: int | None
    """The channel (index in the last axis) that differs most; None where nothing differs."""
    channel_error: float
    """That channel's own relative error."""
    median_error: float
    """The median over the channels of their relative errors."""
    stands_out: float
    """How many times the median that channel's error is; inf where most channels do not differ.

    Here the errors are relative to the larger of the channel's own norm and the median channel's: where a channel is
    next to nothing, as in a sum that cancels, the usual error is large beside it and means nothing.
    """


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What `trace` saw, in the order in which the reference computes."""

    points: tuple[Point, ...]
    tokens: int
    matched_by: str
    """`meaning` or `name`."""
    first: Point | None
    """The first place that differs at all; None where nothing does."""
    step: Point | None
    """The place where the error grows most over the largest before it."""
    outlier: Point | None
    """The place, sums on the residual stream aside, whose worst channel stands out most; None where none does."""


def trace(reference: Path, candidate: Path, tokens: Tokens, *, progress: Progress | None = None) -> Trace:
    """Run both models on the first tokens and compare what they compute on the way.

    Raises:
        ModelError: a model does not load or run, or the two share no place and no name.

    """
    watch_ = progress or Silent()
    pairs, matched_by = _pairs(load(reference), load(candidate), reference, candidate)
    windows = tokens.windows[: max(1, TOKENS // tokens.windows.shape[1]), :TOKENS]
    ours = _session(reference, [pair.ours for pair in pairs], "reference")
    theirs = _session(candidate, [pair.theirs for pair in pairs], "candidate")
    sums = [_Sums() for _ in pairs]
    watch_.start("tracing", int(windows.size), unit="tokens")
    for window in windows:
        first, second = ours.prefill(window[None, :]), theirs.prefill(window[None, :])
        for number, each in enumerate(sums):
            each.add(first[f"{_OUTPUT}{number}"], second[f"{_OUTPUT}{number}"])
        watch_.advance(len(window))
    points = [pair.point(each) for pair, each in zip(pairs, sums, strict=True) if each.fits]
    return Trace(
        points=tuple(points),
        tokens=int(windows.size),
        matched_by=matched_by,
        first=next((point for point in points if point.relative_error > 0.0), None),
        step=_largest_step(points),
        outlier=max(
            # A sum on the residual stream may cancel in a few channels, whose error then says nothing.
            (point for point in points if point.stands_out >= _STANDS_OUT and "residual" not in (point.role or "")),
            key=lambda point: (min(point.stands_out, 1e9), point.channel_error),
            default=None,
        ),
    )


@dataclass(frozen=True)
class _Pair:
    label: str
    layer: int | None
    role: str | None
    ours: str
    theirs: str

    def point(self, sums: _Sums) -> Point:
        return Point(label=self.label, layer=self.layer, role=self.role, **sums.figures())


class _Sums:
    """Squared values and squared differences of each channel, over the windows so far."""

    def __init__(self) -> None:
        self.fits = True
        """Whether both values have the same channels and positions."""
        self._values: npt.NDArray[np.float64] | None = None
        self._errors: npt.NDArray[np.float64] | None = None

    def add(self, reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> None:
        """Add one window's values, [..., channels]."""
        channels = reference.shape[-1] if reference.ndim else 1
        if reference.size != candidate.size or channels != (candidate.shape[-1] if candidate.ndim else 1):
            self.fits = False
            return
        if self._values is None:
            self._values, self._errors = np.zeros(channels), np.zeros(channels)
        assert self._errors is not None
        ours, theirs = reference.reshape(-1, channels), candidate.reshape(-1, channels)
        for a, b in zip(ours, theirs, strict=True):  # a row at a time: logits are wide
            values = a.astype(np.float64)
            self._values += np.square(values)
            self._errors += np.square(b.astype(np.float64) - values)

    def figures(self) -> dict[str, Any]:
        """Return the figures of a `Point`."""
        assert self._values is not None
        assert self._errors is not None
        whole = float(np.sqrt(_ratio(self._errors.sum(), self._values.sum())))
        each = np.sqrt(_ratio(self._errors, self._values))
        steady = np.sqrt(_ratio(self._errors, np.maximum(self._values, np.median(self._values))))
        worst = int(np.argmax(steady))
        return {
            "relative_error": whole,
            "channel": worst if steady[worst] > 0.0 else None,
            "channel_error": float(each[worst]),
            "median_error": float(np.median(each)),
            "stands_out": float(np.sqrt(_ratio(np.square(steady[worst]), np.square(np.median(steady))))),
        }


def _ratio(error: Any, value: Any) -> Any:
    """Return error / value: 0 where there is no error, inf where there is but no value; NaN counts as inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(error == 0.0, 0.0, np.divide(error, value))
    return np.where(np.isnan(found), np.inf, found)


def _largest_step(points: list[Point]) -> Point | None:
    """Return the place with the largest growth over the largest error before it; the first that differs is one."""
    best, found, before = 1.0, None, 0.0
    for point in points:
        growth = point.relative_error / before if before > 0.0 else float("inf") * bool(point.relative_error)
        if point.relative_error > 0.0 and growth > best:
            best, found = growth, point
        before = max(before, point.relative_error)
    return found


def _session(path: Path, names: list[str], role: str) -> LanguageModel:
    """Open the model with the values `names` as its outputs, in order."""
    model = load(path)
    values = {value.name: value for node in model.graph for value in node.outputs}
    watch(model, {f"{_OUTPUT}{number}": values[name] for number, name in enumerate(names)})
    return LanguageModel(path, role=role, graph=serialize(model), folder=weights_folder(model))


def _pairs(ours: TailorModel, theirs: TailorModel, reference: Path, candidate: Path) -> tuple[list[_Pair], str]:
    """Match the values of both graphs, in the order of the reference."""
    others = {mark.key: mark.value.name for mark in find_landmarks(theirs)}
    found = [
        _Pair(mark.label, mark.layer, mark.role, mark.value.name or "", others[mark.key] or "")
        for mark in find_landmarks(ours)
        if mark.key in others
    ]
    if any(pair.layer is not None for pair in found):
        return found, "meaning"
    names = {value.name for value in _floats(theirs)}
    found = [
        _Pair(value.name, None, None, value.name, value.name)
        for value in _floats(ours)
        if value.name is not None and value.name in names
    ]
    if not found:
        raise ModelError(
            f"{candidate} has no projection of a known layer and role, and no name, in common with {reference}; "
            "there is nothing to trace"
        )
    return found, "name"


def _floats(model: TailorModel) -> list[ir.Value]:
    """Return the activations of the main graph, in order, as far as their types are known to be floats."""
    return [value for node in model.graph for value in node.outputs if value.dtype in FLOATS and value.name]
