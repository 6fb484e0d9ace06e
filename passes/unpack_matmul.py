"""The pass `unpack-matmul`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.packing.packed import NotPacked, Packed, find_packed
from onnx_tailor.graph.packing.unpack import unpack
from onnx_tailor.passes.base import Pass
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import Target


@dataclass(frozen=True, kw_only=True)
class UnpackMatMul(Pass):
    """Divide each packed projection into its parts, float or quantized already.

    Before: MatMul(h, Wqkv) -> Split -> q, k, v                 Wqkv: [K, Nq + Nk + Nv]
    After:  MatMul(h, Wq), MatMul(h, Wk), MatMul(h, Wv)         the columns of Wqkv, as ranges of the same file
    Exact: bitwise on weights, scales, zero points and biases; the products change by the order of additions alone.
    """

    name: ClassVar[str] = "unpack-matmul"

    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        """Divide every packed projection whose parts are proved by the nodes that read them."""
        found = list(find_packed(model))
        for candidate in found:
            if isinstance(candidate, NotPacked):
                yield Skip(where=candidate.node.name or candidate.node.op_type, reason=candidate.reason)
            else:
                yield _change(model, candidate)
        if not found:
            yield Skip(where=model.path.name, reason="no projection of the model is packed")
        model.sweep()


def _change(model: TailorModel, packed: Packed) -> Change:
    linear = packed.linear
    change = Change(
        where=linear.name,
        what=f"becomes {', '.join(f'{part.role}_proj [{part.stop - part.start}]' for part in packed.parts)}, "
        f"as {packed.division.how} divides it",
        details={
            "weight": linear.operands[0].name,
            "shape": [linear.rows, linear.columns],
            "parts": {part.role: [part.start, part.stop] for part in packed.parts},
            "divided_by": packed.division.how,
        },
    )
    unpack(model, packed)
    return change
