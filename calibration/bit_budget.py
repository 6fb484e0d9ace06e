"""Choose each weight's bits so that the model predicts as it did, as nearly as a size allows."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_tailor.calibration.in_memory import runner
from onnx_tailor.calibration.sensitivity import choose, find_groups, share_out
from onnx_tailor.errors import ModelError, OptionError
from onnx_tailor.graph.candidates import Candidate
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.progress import Progress
from onnx_tailor.quant import Bits, BlockFormat, dequantize, quantize

if TYPE_CHECKING:
    from onnx_tailor.verify.tokens import Tokens

CHOICES: tuple[Bits, ...] = (2, 4, 8)
MEASURED_BITS: Bits = 4
"""Bits at which groups are measured: large enough an error to see, small enough to add up."""
_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_BUDGET = re.compile(rf"\s*(\d+(?:\.\d+)?)\s*(bpw|{'|'.join(_UNITS)})\s*")
_CHUNKS, _ROWS = 8, 32
"""Runs of rows, and rows of each, that stand for a whole weight where its error is estimated."""
_WINDOWS, _LENGTH = 4, 64

Quantizer = Callable[[TailorModel, Mapping[str, Bits]], None]
"""Quantizes a model in memory: the weights that the patterns match, with these bits, and no others."""


@dataclass(frozen=True)
class Weighed:
    """One weight as the choice sees it."""

    candidate: Candidate
    formats: Mapping[Bits, BlockFormat]
    """By bits."""
    sizes: Mapping[Bits, int]
    """Stored bytes by bits."""
    importance: npt.NDArray[np.float32] | None


def parse_budget(text: str, parameters: int) -> int:
    """Return the bytes that "4.5 bpw" or "180 MB" allows for all weights of a model with so many parameters.

    Raises:
        OptionError: the text is neither.
    """
    found = _BUDGET.fullmatch(text)
    if found is None:
        message = f'budget {text!r} is neither bits per weight, as in "4.5 bpw", nor a size, as in "180 MB"'
        raise OptionError(message, key=("budget",))
    number, unit = float(found[1]), found[2]
    return int(number * parameters / 8) if unit == "bpw" else int(number * _UNITS[unit])


def plan_bits(
    model: TailorModel, weights: Sequence[Weighed], budget: int, tokens: Tokens, quantizer: Quantizer, watch: Progress
) -> dict[str, Bits]:
    """Return the bits of each weight, by the pattern that means it alone.

    `budget` is for these weights only. `model` is left as it is.

    Raises:
        OptionError: even the fewest bits are too many.
        ModelError: the model cannot be run, or what is rewritten does not fit into a graph.
    """
    errors = [{bits: _error(each, bits) for bits in CHOICES} for each in weights]
    groups = find_groups([each.candidate for each in weights])
    patterns = [pattern(each.candidate) for each in weights]
    windows = tokens.windows[:: max(1, len(tokens.windows) // _WINDOWS)][:_WINDOWS, :_LENGTH]
    watch.start("measuring the cost of bits", windows.size * (1 + len(groups)), unit="tokens")
    reference = list(_logits(_copy(model), windows, watch))
    measured = []
    for group in groups:
        changed = _copy(model)
        quantizer(changed, {patterns[number]: MEASURED_BITS for number in group.members})
        measured.append(_divergence(reference, _logits(changed, windows, watch), windows))
    parts = share_out(np.array([each[MEASURED_BITS] for each in errors]), groups, measured)
    costs = [
        {bits: part * error[bits] / max(error[MEASURED_BITS], 1e-12) for bits in CHOICES}
        for part, error in zip(parts, errors, strict=True)
    ]
    chosen = choose([each.sizes for each in weights], costs, budget)
    if chosen is None:
        least = sum(min(each.sizes.values()) for each in weights)
        raise OptionError(
            f"the budget leaves {max(0, budget):,} bytes for the weights, but with {min(CHOICES)} bits they take "
            f"{least:,}; give more, or larger blocks",
            key=("budget",),
        )
    return dict(zip(patterns, chosen, strict=True))


def pattern(candidate: Candidate) -> str:
    """Return a pattern of `nodes` that means this weight: its name, with the signs of patterns taken literally."""
    return glob.escape(candidate.name)


def _error(each: Weighed, bits: Bits) -> float:
    """Return the error of the outputs relative to the outputs, for some rows and inputs that do not correlate."""
    view, fmt = each.candidate.matrix.view, each.formats[bits]
    rows, columns = each.candidate.matrix.shape
    step = max(_ROWS, rows // _CHUNKS)
    cost = np.ones(columns) if each.importance is None else each.importance.astype(np.float64)
    error = total = 0.0
    for start in range(0, rows, step):
        weight = view.rows(start, min(start + _ROWS, rows)).read().astype(np.float32)
        value = dequantize(quantize(weight, fmt, "k_quant", each.importance), columns, fmt)
        error += float(np.sum((value.astype(np.float64) - weight) ** 2 * cost))
        total += float(np.sum(weight.astype(np.float64) ** 2 * cost))
    return error / total if total else 0.0


def _copy(model: TailorModel) -> TailorModel:
    """Return a model whose graph can be changed; the weights are shared."""
    return replace(model, ir_model=model.ir_model.clone(), _names=set())


def _logits(model: TailorModel, windows: npt.NDArray[np.int64], watch: Progress) -> Iterator[npt.NDArray[Any]]:
    session = runner(model)
    if session.logits is None:
        raise ModelError(f"{model.path}: yields no logits to measure by; give bits in the place of `auto`")
    for window in windows:
        yield session.prefill(window[None])[session.logits][0]
        watch.advance(len(window))


def _divergence(
    reference: Sequence[npt.NDArray[Any]], logits: Iterator[npt.NDArray[Any]], windows: npt.NDArray[np.int64]
) -> float:
    from onnx_tailor.verify.metrics import LogitSums, logit_sums

    total = LogitSums()
    for window, first, second in zip(windows, reference, logits, strict=True):
        total += logit_sums(first, second, window)
    return total.kl_mean
