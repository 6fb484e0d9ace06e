"""A prepared pass with what its report is to say besides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from onnx_tailor.graph.model import TailorModel
from onnx_tailor.passes.base import Pass
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import Target

__all__ = ["Remarked"]


@dataclass(frozen=True, kw_only=True)
class Remarked(Pass):
    """A pass whose changes also say what preparing it found out. Stands in no recipe: `prepare_set` makes it."""

    prepared: Pass
    remarks: Mapping[str, str]
    """By the place that a change is about."""

    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        """Apply the pass that was prepared, and add the remarks to its changes.

        Raises:
            ModelError: as the pass does.
            OptionError: as the pass does.
        """
        for result in self.prepared.apply(model, target):
            remark = self.remarks.get(result.where)
            yield result if remark is None or isinstance(result, Skip) else _with(result, remark)


def _with(change: Change, remark: str) -> Change:
    return replace(change, what=f"{change.what}; {remark}", details={**change.details, "remark": remark})
