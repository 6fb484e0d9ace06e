"""What a rule looks at, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import onnx_ir as ir

from onnx_tailor.graph.file.size import weight_tensors
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.tables.nbits_weight import Heads
from onnx_tailor.graph.tables.read_block_table import FoundTable, Unread, find_block_tables
from onnx_tailor.targets import Target
from onnx_tailor.weights.tensors import WeightTensor


@dataclass(frozen=True)
class Mend:
    """The line of a recipe that mends a finding."""

    name: str
    """The pass."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The pass as an item of a recipe's `passes`."""
        options = ", ".join(f"{key}: {value}" for key, value in self.options.items())
        return f"{self.name}: {{{options}}}" if options else self.name


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a target would refuse, compute wrongly or pay for."""

    rule: str
    level: Literal["problem", "note"]
    """A note costs speed, or matters to some devices or older releases alone."""
    file: str
    where: str
    """Name of the node, the weight or the data file."""
    what: str
    bytes: int = 0
    """What it costs on the disk or in memory; 0 where it costs neither."""
    mend: Mend | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON values; `mend` as the recipe's line."""
        return {**asdict(self), "mend": self.mend.line if self.mend else None}


@dataclass(frozen=True)
class Subject:
    """One model file under one target."""

    model: TailorModel
    target: Target

    @cached_property
    def tables(self) -> list[FoundTable | Unread]:
        """The quantized tables of which rows are gathered."""
        return find_block_tables(self.model)

    @cached_property
    def heads(self) -> Heads:
        """The quantized projections."""
        return Heads.of(self.model)

    @cached_property
    def weights(self) -> list[tuple[ir.Value, WeightTensor]]:
        """The initializers that lie in a file as ranges of bytes."""
        values = [(value, value.const_value) for value in weight_tensors(self.model)]
        return [(value, tensor) for value, tensor in values if isinstance(tensor, WeightTensor)]

    def problem(self, rule: str, where: str | None, what: str, *, bytes_: int = 0, mend: Mend | None = None) -> Finding:
        """Return a problem of this file."""
        return self._finding("problem", rule, where, what, bytes_, mend)

    def note(self, rule: str, where: str | None, what: str, *, bytes_: int = 0, mend: Mend | None = None) -> Finding:
        """Return a note on this file."""
        return self._finding("note", rule, where, what, bytes_, mend)

    def _finding(
        self,
        level: Literal["problem", "note"],
        rule: str,
        where: str | None,
        what: str,
        bytes_: int,
        mend: Mend | None,
    ) -> Finding:
        return Finding(
            rule=rule, level=level, file=self.model.path.name, where=where or "", what=what, bytes=bytes_, mend=mend
        )


Rule = Callable[[Subject], Iterable[Finding]]
