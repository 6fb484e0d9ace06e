"""The pass `pack-matmul`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.packing.pack import pack
from onnx_tailor.graph.packing.packable import NotPackable, Packable, find_packable
from onnx_tailor.passes.base import Pass
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import Target


@dataclass(frozen=True, kw_only=True)
class PackMatMul(Pass):
    """Make one projection of query, key and value, and one of gate and up: the reverse of `unpack-matmul`.

    Before: MatMul(h, Wq), MatMul(h, Wk), MatMul(h, Wv)
    After:  MatMul(h, Wqkv) -> Split -> q, k, v                 or packed into a GroupQueryAttention
    Exact: bitwise on weights, scales, zero points and biases; the products change by the order of additions alone.
    """

    name: ClassVar[str] = "pack-matmul"

    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        """Pack every query, key and value, and every gate and up, that read one activation."""
        found = list(find_packable(model))
        for candidate in found:
            if isinstance(candidate, NotPackable):
                where = ", ".join(node.name or node.op_type for node in candidate.nodes)
                yield Skip(where=where, reason=candidate.reason)
            else:
                yield _change(model, candidate)
        if not found:
            yield Skip(
                where=model.path.name, reason="no query, key and value, and no gate and up, read one activation apart"
            )
        model.sweep()


def _change(model: TailorModel, packable: Packable) -> Change:
    members = packable.members
    attention = packable.attention
    how = f"{attention.op_type} takes it whole" if attention is not None else "a Split divides it"
    change = Change(
        where=members[0].linear.name,
        what=f"packed with {' and '.join(f'{member.role}_proj' for member in members[1:])}; {how}",
        details={
            "weights": [member.linear.operands[0].name for member in members],
            "shape": [sum(member.linear.rows for member in members), members[0].linear.columns],
            "parts": {member.role: member.linear.rows for member in members},
            "divided_by": attention.op_type if attention is not None else "Split",
        },
    )
    pack(model, packable)
    return change
