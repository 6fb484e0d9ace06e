"""The pass `accuracy-level`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnx_tailor.graph.model import TailorModel, attribute
from onnx_tailor.graph.tables.nbits_weight import nbits_nodes
from onnx_tailor.passes.base import Pass
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import Target


@dataclass(frozen=True, kw_only=True)
class AccuracyLevel(Pass):
    """Set how exactly MatMulNBits nodes that are in the file already have to multiply.

    Before: MatMulNBits(h, B, scales)                       accuracy_level 0: as exactly as the type allows
    After:  MatMulNBits(h, B, scales)                       accuracy_level 4: activations rounded to 8 bits
    No weight changes; the products do, by the rounding of the activations.
    """

    name: ClassVar[str] = "accuracy-level"

    level: Literal[0, 1, 2, 3, 4] = 4
    """0 leaves it to the kernel, 1 float32, 2 float16, 3 bfloat16, 4 8-bit integers, which is the fastest on a CPU."""

    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        """Write the attribute where it has another value."""
        nodes = nbits_nodes(model)
        for node in nodes:
            before = attribute(node, "accuracy_level", 0)
            where = node.name or ""
            if before == self.level:
                yield Skip(where=where, reason=f"its accuracy_level is {before} already")
                continue
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", self.level)
            yield Change(where=where, what=f"accuracy_level {self.level}", details={"before": before})
        if not nodes:
            yield Skip(where=model.path.name, reason="the model has no MatMulNBits")
