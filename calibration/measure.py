"""How far the outputs of a model move when its weights are changed, or those of the encoder whose states it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_tailor.calibration.in_memory import runner
from onnx_tailor.errors import ModelError
from onnx_tailor.graph.constants import FLOATS
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.tables.token_tables import find_tables
from onnx_tailor.progress import Progress
from onnx_tailor.verify.facts import is_over_vocabulary, table_rows
from onnx_tailor.verify.metrics import LogitSums, logit_sums
from onnx_tailor.verify.tokens import Tokens

__all__ = ["Measure", "has_logits", "reads_states"]

_WINDOWS, _LENGTH = 4, 64
_STATES, _MASK = "encoder_hidden_states", "encoder_attention_mask"

Array = npt.NDArray[Any]
Edit = Callable[[TailorModel], None]
"""Rewrites a model in memory."""


def has_logits(model: TailorModel) -> bool:
    """Whether the model predicts tokens, which are measured in nats."""
    return _logits(model) is not None


def _logits(model: TailorModel) -> str | None:
    """Return the name of the output that holds the logits, as `LanguageModel.logits` does."""
    rows = max((table.matrix.shape[0] for table in find_tables(model)), default=None)
    for value in model.graph.outputs:
        if "logits" in (value.name or ""):
            return value.name if value.shape is None or is_over_vocabulary(list(value.shape), rows) else None
    return None


def reads_states(model: TailorModel, encoder: TailorModel) -> bool:
    """Whether `model` predicts tokens from the states that `encoder` yields: of one type and width."""
    read = next((value for value in model.graph.inputs if value.name == _STATES), None)
    if read is None or not has_logits(model) or has_logits(encoder):
        return False
    made = encoder.graph.outputs[0] if encoder.graph.outputs else None
    if made is None or read.shape is None or made.shape is None or len(made.shape) != len(read.shape):
        return False
    return made.dtype == read.dtype and made.shape[-1] == read.shape[-1] and isinstance(read.shape[-1], int)


@dataclass(frozen=True)
class Measure:
    """Measures changes of one model, and of an encoder whose first output it reads."""

    model: TailorModel
    encoder: TailorModel | None
    windows: npt.NDArray[np.int64]
    reference: Sequence[tuple[Array, ...]]
    watch: Progress

    @classmethod
    def of(cls, model: TailorModel, encoder: TailorModel | None, tokens: Tokens, runs: int, watch: Progress) -> Measure:
        """Run the models as they are; `runs` more are to come.

        Raises:
            InputsError: an input of one of them cannot be filled from tokens.
            ModelError: one of them cannot be run.
        """
        windows = tokens.windows[:: max(1, len(tokens.windows) // _WINDOWS)][:_WINDOWS, :_LENGTH]
        where = f" of {model.path.name}" if model.siblings else ""
        watch.start(f"measuring the cost of bits{where}", windows.size * (1 + runs), unit="tokens")
        empty = cls(model, encoder, windows, (), watch)
        return replace(empty, reference=tuple(empty._outputs(None, None)))

    def divergence(self, edit: Edit | None, edit_encoder: Edit | None = None) -> float:
        """Return how far the outputs are after both edits: the mean KL divergence of predictions, in nats.

        Without logits, the mean over the outputs of |after - before|^2 / |before|^2.

        Raises:
            ModelError: a model cannot be run, or what is rewritten does not fit into a graph.
        """
        pairs = zip(self.reference, self._outputs(edit, edit_encoder), strict=True)
        if self._logits is None:
            return _relative_square(pairs)
        total = LogitSums()
        for window, ((first,), (second,)) in zip(self.windows, pairs, strict=True):
            total += logit_sums(first[0], second[0], window)
        return total.kl_mean

    @cached_property
    def _logits(self) -> str | None:
        return _logits(self.model)

    def _outputs(self, edit: Edit | None, edit_encoder: Edit | None) -> Iterator[tuple[Array, ...]]:
        """Yield for each window the logits [1, s, V], or every output of floats."""
        states = None if self.encoder is None else list(_states(_edited(self.encoder, edit_encoder), self.windows))
        masked = any(value.name == _MASK for value in self.model.graph.inputs)
        names = [value.name or "" for value in self.model.graph.outputs if value.dtype in FLOATS]
        session = runner(_edited(self.model, edit))
        names = names if self._logits is None else [self._logits]
        if not names:
            raise ModelError(f"{self.model.path}: yields no floats to measure by; give bits in the place of `auto`")
        for number, window in enumerate(self.windows):
            given: dict[str, Array] = {}
            if states is not None:
                given[_STATES] = states[number]
                if masked:
                    given[_MASK] = np.ones(states[number].shape[:2], np.int64)
            outputs = session.prefill(window[None], given=given)
            yield tuple(outputs[name] for name in names)
            self.watch.advance(len(window))


def _states(encoder: TailorModel, windows: npt.NDArray[np.int64]) -> Iterator[Array]:
    """Yield the states [1, s, K] of the encoder for each window."""
    name = encoder.graph.outputs[0].name or ""
    rows = table_rows(encoder.path)  # a decoder may know more tokens than its encoder
    session = runner(encoder)
    for window in windows:
        yield session.prefill((window if rows is None else window % rows)[None])[name]


def _edited(model: TailorModel, edit: Edit | None) -> TailorModel:
    """Return a copy whose graph is changed; the weights are shared."""
    copy = replace(model, ir_model=model.ir_model.clone(), _names=set())
    if edit is not None:
        edit(copy)
    return copy


def _relative_square(pairs: Iterator[tuple[tuple[Array, ...], tuple[Array, ...]]]) -> float:
    sums: dict[int, list[float]] = {}
    for before, after in pairs:
        for number, (first, second) in enumerate(zip(before, after, strict=True)):
            x, y = first.astype(np.float64), second.astype(np.float64)
            each = sums.setdefault(number, [0.0, 0.0])
            each[0] += float(np.sum(np.square(y - x)))
            each[1] += float(np.sum(np.square(x)))
    parts = [error / size for error, size in sums.values() if size > 0]
    return sum(parts) / len(parts) if parts else 0.0
