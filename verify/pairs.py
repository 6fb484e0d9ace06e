"""Which weight of the candidate stands for which of the reference, and its values in the reference's own form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_tailor.graph.constants import Matrix
from onnx_tailor.graph.meaning.stored_weights import Blocks, StoredWeight, stored_weights
from onnx_tailor.weights.tensors import WeightTensor

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnx_tailor.graph.model import TailorModel

__all__ = ["Pair", "pair_weights"]

_PARTS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Packed projections and the order of the rows in them."""


@dataclass(frozen=True)
class Pair:
    """A weight of the reference, and what the candidate has in its place: several where a packed one was divided."""

    ours: StoredWeight
    theirs: tuple[StoredWeight, ...]
    initializers: tuple[ir.Value, ...]
    """The reference's initializers that have to be fed."""

    @property
    def bits(self) -> int | None:
        """As the candidate stores it, the fewest of its parts; None for float."""
        return min((each.form.bits for each in self.theirs if isinstance(each.form, Blocks)), default=None)

    def row_errors(self) -> npt.NDArray[np.float64]:
        """Return ||theirs - ours|| / ||ours|| of each row [N]: 0 where equal, inf where only ours is zero."""
        errors, squares = np.zeros(self.ours.shape[0]), np.zeros(self.ours.shape[0])
        at = 0
        for each in self.theirs:
            mine = self.ours.rows(at, at + each.shape[0])
            for (_, theirs), (start, ours) in zip(each.rows(), mine, strict=True):
                part, values = slice(start, start + len(ours)), ours.astype(np.float64)
                errors[part] = np.square(theirs.astype(np.float64) - values).sum(axis=1)
                squares[part] = np.square(values).sum(axis=1)
            at += each.shape[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(errors == 0.0, 0.0, np.sqrt(errors / squares))

    def override(self) -> dict[str, npt.NDArray[Any]]:
        """Return the candidate's values in the reference's form, by initializer."""
        if isinstance(self.ours.form, Blocks):
            return self._operands()
        own, value = self.ours.form, self.initializers[0]
        tensor = value.const_value
        assert tensor is not None
        straight = own.view.is_contiguous
        result = np.empty(self.ours.shape if straight else self.ours.shape[::-1], own.view.dtype.numpy())
        rows = result if straight else result.T
        at = 0
        for each in self.theirs:
            for start, part in each.rows():
                rows[at + start : at + start + len(part)] = part
            at += each.shape[0]
        return {value.name or "": result.reshape(tuple(tensor.shape.numpy()))}

    def _operands(self) -> dict[str, npt.NDArray[Any]]:
        """Feed codes, scales and zero points as they are; every initializer on the same bytes gets them."""
        (theirs,) = self.theirs
        new: dict[str, npt.NDArray[Any]] = {}
        for mine, other in zip(self.ours.initializers, theirs.initializers, strict=True):
            assert other.const_value is not None
            values = other.const_value.numpy()
            for value in _aliases(mine, self.initializers):
                assert value.const_value is not None
                new[value.name or ""] = values.reshape(tuple(value.const_value.shape.numpy()))
        return new


def pair_weights(reference: TailorModel, candidate: TailorModel) -> tuple[list[Pair], list[str]]:
    """Match the weights of both models by layer and role, or else by the reader's name.

    Returns the pairs, and a line for each weight of the reference that has no fitting partner.
    """
    by_key: dict[object, StoredWeight] = {}
    for each in stored_weights(candidate):
        by_key.update({mark.key: each for mark in each.marks})
        by_key.setdefault(each.name, each)
    pairs, skipped = [], []
    for ours in stored_weights(reference):
        found = _partners(ours, by_key)
        what = ", ".join(mark.label for mark in ours.marks) or ours.name
        reason = found if isinstance(found, str) else _objection(ours, found)
        if reason is not None or isinstance(found, str):
            skipped.append(f"{what}: {reason}")
            continue
        pairs.append(Pair(ours, found, _fed(reference, ours)))
    return pairs, skipped


def _partners(ours: StoredWeight, by_key: dict[object, StoredWeight]) -> tuple[StoredWeight, ...] | str:
    found = [by_key.get(mark.key) for mark in ours.marks] or [by_key.get(ours.name)]
    known = list(dict.fromkeys(each for each in found if each is not None))
    if known and all(_equal(known[0], other) for other in known[1:]):
        return (known[0],)
    if known:
        return "the candidate stores in several what is one weight in the reference"
    for mark in ours.marks:
        parts = [by_key.get((mark.layer, role, mark.number)) for role in _PARTS.get(mark.role, ())]
        whole = [part for part in parts if part is not None]
        if whole and len(whole) == len(parts):
            return tuple(whole)
    return "no projection of the candidate has its layer and role, nor its name"


def _equal(first: StoredWeight, second: StoredWeight) -> bool:
    """Whether two weights hold the same values: an alias that another tool wrote out twice is still one weight."""
    if first.shape != second.shape:
        return False
    return all(np.array_equal(a, b) for (_, a), (_, b) in zip(first.rows(), second.rows(), strict=True))


def _objection(ours: StoredWeight, theirs: tuple[StoredWeight, ...]) -> str | None:
    shape = (sum(each.shape[0] for each in theirs), theirs[0].shape[1])
    if shape != ours.shape:
        return f"it is {list(ours.shape)} in the reference and {list(shape)} in the candidate"
    if isinstance(ours.form, Matrix):
        return None
    other = theirs[0].form
    same = isinstance(other, Blocks) and len(theirs) == 1
    if not same or not isinstance(other, Blocks):
        return "the reference is quantized, and the candidate stores it in another form"
    if _kind(ours.form) != _kind(other):
        return "the two quantize it in different bits, blocks or forms"
    return None


def _kind(form: Blocks) -> tuple[object, ...]:
    """Return what two must have in common for one's operands to be fed as the other's."""
    points = form.operands[2].dtype if len(form.operands) > 2 else None
    return form.bits, form.block_size, points


def _fed(model: TailorModel, ours: StoredWeight) -> tuple[ir.Value, ...]:
    """Return the initializers that nodes read and that lie on the weight's bytes."""
    used = [value for graph in model.graphs() for value in graph.initializers.values() if value.uses()]
    if isinstance(ours.form, Matrix):
        return ours.initializers
    return tuple(dict.fromkeys(alias for value in ours.initializers for alias in _aliases(value, used)))


def _aliases(value: ir.Value, among: Any) -> list[ir.Value]:
    """Return the initializers of `among` on the same bytes as `value`."""
    blob = _blob(value)
    return [each for each in among if each is value or (blob is not None and _blob(each) == blob)]


def _blob(value: ir.Value) -> object:
    tensor = value.const_value
    return tensor.blob if isinstance(tensor, WeightTensor) else None
