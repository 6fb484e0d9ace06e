"""What each input of a language model is fed, by its name and shape.

Knows the names that torch.onnx, optimum and the GenAI builder write. Symbolic dimensions are resolved by
their names, by the ids' own dimensions, and at last by their place in the usual
[batch, heads, past, head size].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from onnx_tailor.errors import InputsError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

__all__ = ["ENCODER_LENGTH", "IDS", "Cache", "Input", "Sizes", "feeds", "is_past"]

Array = npt.NDArray[Any]
Shape = tuple[int | str | None, ...]

ENCODER_LENGTH = 16
"""Positions of the fixed random encoder states that a decoder is fed."""

_SEED = 20
_DTYPES: Mapping[str, npt.DTypeLike] = {
    "tensor(bool)": np.bool_,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}
IDS = ("decoder_input_ids", "input_ids")
"""Names of the input that takes the tokens."""
_CROSS = ("encoder", "cross")
_HEAD_SIZES = ("head_dim", "head_size", "kv_cache_dim")


@dataclass(frozen=True)
class Input:
    """One input as ONNX Runtime describes it."""

    name: str
    type: str
    """ONNX Runtime's name, as tensor(float16)."""
    shape: Shape
    """A number, a symbol's name, or None where nothing is known."""


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the inputs leave open."""

    head_size: int | None = None
    """The size of a head, which the GenAI builder writes as a symbol."""
    windows: Mapping[str, int] = field(default_factory=dict)
    """Positions of the states that are buffers of a sliding window, by the name of the input."""


@dataclass(frozen=True)
class Cache:
    """Keys, values and other states of the tokens before, by the names of the inputs that take them."""

    length: int
    """Tokens that the states stand for."""
    values: Mapping[str, Array]


def is_past(name: str) -> bool:
    """Say whether an input is a state of the tokens before, as past_key_values.0.key."""
    return name.startswith("past")


def feeds(
    inputs: tuple[Input, ...],
    ids: npt.NDArray[np.int64],
    past: Cache | None,
    sizes: Sizes,
    known: Container[str] = (),
) -> dict[str, Array]:
    """Fill every input but those `known` for ids [b, s] after `past`, or from the start where it is None.

    Raises:
        InputsError: an input has a name, type or shape that cannot be filled.

    """
    scope = _Scope(inputs, ids, past, sizes)
    return {each.name: scope.fill(each) for each in inputs if each.name not in known}


class _Scope:
    """The sizes of one run, to which symbolic dimensions are resolved."""

    def __init__(
        self,
        inputs: tuple[Input, ...],
        ids: npt.NDArray[np.int64],
        past: Cache | None,
        sizes: Sizes,
    ) -> None:
        self.ids = ids
        self.past = past
        self.past_length = past.length if past else 0
        self.sizes = sizes
        self.names = frozenset(each.name for each in inputs)
        named = next((each for each in inputs if each.name in IDS), None)
        symbols = named.shape if named and len(named.shape) == 2 else (None, None)
        # torch's own symbols (s72, s53) mean nothing but through the ids that share them.
        self.symbols = {
            symbol: size for symbol, size in zip(symbols, ids.shape, strict=True) if isinstance(symbol, str)
        }

    def fill(self, each: Input) -> Array:
        """Return the array for one input.

        Raises:
            InputsError: no rule knows the input.

        """
        if each.type not in _DTYPES:
            raise _unfillable(each, f"its type is {each.type}")
        dtype = np.dtype(_DTYPES[each.type])
        value = self._state(each) if is_past(each.name) else self._plain(each)
        if value is None:
            raise _unfillable(each, "no rule knows it")
        return value.astype(dtype, copy=False)

    def _plain(self, each: Input) -> Array | None:
        """Return the value of an input that is no state of the tokens before; None for an unknown one."""
        batch, length = self.ids.shape
        total = self.past_length + length
        positions = np.arange(self.past_length, total)
        value: Array | None = None
        match each.name:
            case "input_ids" | "decoder_input_ids":
                value = self.ids
            case "attention_mask" | "decoder_attention_mask" if len(each.shape) == 2:
                value = np.ones((batch, total), np.int64)
            case "encoder_attention_mask":
                value = np.ones((batch, ENCODER_LENGTH), np.int64)
            case "position_ids" if len(each.shape) <= 3:
                # Rank 1 [s], rank 2 [b, s], or rank 3 [3, b, s] of rotary embeddings in sections.
                leading = (3, batch)[3 - len(each.shape) :]
                value = np.broadcast_to(positions, (*leading, length))
            case "cache_position":
                value = positions
            case "token_type_ids":
                value = np.zeros((batch, length), np.int64)
            case "use_cache_branch":
                value = np.full(1, self.past_length > 0)
            case "num_logits_to_keep" | "logits_to_keep":
                value = np.zeros(tuple(1 for _ in each.shape), np.int64)  # 0 keeps them all
            case "input_features" | "audio_features":  # [b, mel bins, frames]
                value = _fixed_random(each, (batch, self._static(each, 1), self._static(each, 2)))
            case "inputs_embeds":
                value = _fixed_random(each, (batch, length, self._static(each, 2)))
            case "encoder_hidden_states":
                value = _fixed_random(each, (batch, ENCODER_LENGTH, self._static(each, 2)))
        return value

    def _state(self, each: Input) -> Array:
        """Return a state from the cache, an empty one, zeros where it has no length, or encoder states."""
        if self.past is not None and each.name in self.past.values:
            return self.past.values[each.name]
        cross = any(word in each.name for word in _CROSS)
        if "tensor(float" not in each.type and each.type != "tensor(bfloat16)":
            raise _unfillable(each, f"its type is {each.type}")
        if cross and "encoder_hidden_states" not in self.names:
            return _fixed_random(each, self._resolve(each, ENCODER_LENGTH))
        length = ENCODER_LENGTH if cross else self.sizes.windows.get(each.name, 0)
        return np.zeros(self._resolve(each, length), np.float32)

    def _resolve(self, each: Input, length: int) -> tuple[int, ...]:
        """Return the shape with every symbol resolved, the state's own length being `length`."""
        return tuple(
            dim if isinstance(dim, int) else self._symbol(each, axis, length) for axis, dim in enumerate(each.shape)
        )

    def _symbol(self, each: Input, axis: int, length: int) -> int:
        """Return the size of one symbolic dimension of a state."""
        symbol = each.shape[axis]
        word = symbol if isinstance(symbol, str) else ""
        batch = int(self.ids.shape[0])
        cell = (len(each.shape), axis)
        if word in self.symbols:
            return int(self.symbols[word])
        if any(name in word for name in _HEAD_SIZES):
            return self._known_head_size(each)
        if "past" in word or "seq" in word or "length" in word:
            return length
        if "batch" in word or axis == 0:
            return batch
        if cell == (4, 2):
            return length
        if cell == (4, 3):
            return self._known_head_size(each)
        raise _unfillable(each, f"the size of its dimension {axis} ({symbol}) is not known")

    def _known_head_size(self, each: Input) -> int:
        if self.sizes.head_size is None:
            raise _unfillable(each, "its head size is symbolic; put the model's config.json beside it")
        return self.sizes.head_size

    @staticmethod
    def _static(each: Input, axis: int) -> int:
        """Return a dimension that must be a number."""
        size = each.shape[axis] if axis < len(each.shape) else None
        if not isinstance(size, int):
            raise _unfillable(each, f"its dimension {axis} is not a number")
        return size


def _fixed_random(each: Input, shape: tuple[int, ...]) -> Array:
    """Draw N(0, 1) values that depend on the name and shape alone, and that are exact in every float type.

    Rounded to bfloat16 through float16, so that models of different types are fed the same numbers.
    """
    seed = [_SEED, *each.name.encode()]
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return values.astype(ml_dtypes.bfloat16).astype(np.float32).astype(np.float16)


def _unfillable(each: Input, why: str) -> InputsError:
    shape = ", ".join(str(dim) for dim in each.shape)
    return InputsError(f"The input {each.name} [{shape}] cannot be filled from tokens: {why}.")
