"""Part of the pass `quantize`: by what `bits: auto` measures the weights of each file of a set.

What predicts tokens is measured by its predictions, and so is an encoder whose states such a file reads. Any other is
measured by its own outputs, which no number of nats stands for. A file whose inputs no token fills is not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnx_tailor.calibration.bit_budget import Form, measured_costs
from onnx_tailor.calibration.measure import Edit, Measure, has_logits, reads_states
from onnx_tailor.calibration.sensitivity import find_groups
from onnx_tailor.calibration.tokens import unseen
from onnx_tailor.errors import InputsError
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.passes.set_parts import Part, Shared

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Circumstances

__all__ = ["Forms", "Judge", "find_judges"]

Forms = Mapping[int, Form]
"""By the number of a shared weight."""


@dataclass(frozen=True)
class Judge:
    """The outputs by which some weights are measured."""

    parts: Sequence[Part]
    shared: Sequence[Shared]
    file: int
    """Whose outputs they are."""
    encoder: int | None
    """The file whose states that one reads."""
    members: tuple[int, ...]
    """The weights, by their numbers: of either file."""
    measure: Measure | None
    """None where the file cannot be run."""
    reason: str = ""
    """Why not."""
    costs: dict[int, Mapping[Form, float]] = field(default_factory=dict)
    """Of each weight, by its number: nats with `in_nats`, else relative."""

    @property
    def in_nats(self) -> bool:
        """Whether what is measured are predictions."""
        return self.measure is not None and has_logits(self.parts[self.file].model)

    def divergence(self, forms: Forms, circumstances: Circumstances, *, exact: bool = False) -> float:
        """Return how far the outputs are once the shared weights of these numbers are quantized.

        Raises:
            ModelError: what is rewritten cannot be run.
        """
        assert self.measure is not None

        def edit(file: int | None) -> Edit | None:
            own = {
                number: form for at, form in forms.items() for where, number in self.shared[at].places if where == file
            }
            return self.parts[file].edit(own, circumstances.target, exact=exact) if file is not None and own else None

        return self.measure.divergence(edit(self.file), edit(self.encoder))

    def weigh(self, circumstances: Circumstances) -> None:
        """Find the costs, the roles and layers of one file at a time.

        Raises:
            ModelError: what is rewritten cannot be run.
        """
        for file in (self.file, self.encoder):
            own = [at for at in self.members if self.shared[at].file == file]
            weights = [self.shared[at].weight for at in own]

            def divergence(forms: Forms, own: Sequence[int] = own) -> float:
                return self.divergence({own[n]: form for n, form in forms.items()}, circumstances)

            if self.measure is not None and own:
                self.costs.update(zip(own, measured_costs(weights, divergence), strict=True))


def find_judges(parts: Sequence[Part], shared: Sequence[Shared], circumstances: Circumstances) -> list[Judge]:
    """Return what judges the weights that have no bits yet, with the costs of all forms.

    Raises:
        ModelError: a model cannot be run.
    """
    pairs: dict[tuple[int, int | None], list[int]] = {}
    for at, each in enumerate(shared):
        pairs.setdefault(_pair([part.model for part in parts], each.file), []).append(at)
    return [
        judge
        for (file, encoder), members in pairs.items()
        for judge in _weighed(parts, shared, file, encoder, members, circumstances)
    ]


def _pair(models: Sequence[TailorModel], file: int) -> tuple[int, int | None]:
    """Return the file by whose outputs the weights of `file` are measured, and the encoder whose states it reads."""
    if has_logits(models[file]):
        return file, next((n for n, other in enumerate(models) if reads_states(models[file], other)), None)
    reader = next((n for n, other in enumerate(models) if reads_states(other, models[file])), None)
    return (file, None) if reader is None else (reader, file)


def _weighed(
    parts: Sequence[Part],
    shared: Sequence[Shared],
    file: int,
    encoder: int | None,
    members: Sequence[int],
    circumstances: Circumstances,
) -> Iterator[Judge]:
    """Yield one judge, or several where an encoder cannot be run."""
    by_file = [[at for at in members if shared[at].file == each] for each in (file, encoder)]
    runs = sum(len(find_groups([shared[at].weight.place for at in own])) for own in by_file)
    models = [None if each is None else parts[each].model for each in (file, encoder)]
    assert models[0] is not None
    try:
        measure = Measure.of(models[0], models[1], unseen(models[0].path), runs, circumstances.progress)
    except InputsError as error:
        if encoder is not None:
            if by_file[0]:
                yield from _weighed(parts, shared, file, None, by_file[0], circumstances)
            yield Judge(parts, shared, encoder, None, tuple(by_file[1]), None, str(error))
        elif len(parts) > 1 and not has_logits(models[0]):
            yield Judge(parts, shared, file, None, tuple(members), None, str(error))
        else:
            raise
        return
    judge = Judge(parts, shared, file, encoder, tuple(members), measure)
    judge.weigh(circumstances)
    yield judge
