"""The pass `reshape-dim`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.shapes import LEAST_OPSET
from onnx_tailor.graph.tables.block_table import BlockTable, gather
from onnx_tailor.graph.tables.read_block_table import FoundTable, Unread, find_block_tables
from onnx_tailor.passes.base import Pass
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import Target

Layout = Literal["auto", "shared", "alias", "correction", "plain", "reshape"]


@dataclass(frozen=True, kw_only=True)
class ReshapeDim(Pass):
    """Give every GatherBlockQuantized the shapes and the explicit attributes that the target's kernel computes rightly.

    Before: GatherBlockQuantized(Reshape(B), ids, scales)             attributes left to defaults
    After:  GatherBlockQuantized(B, ids, scales) -> Reshape            all four attributes written
    Exact, but for `correction`, which adds one rounding.
    """

    name: ClassVar[str] = "reshape-dim"

    layout: Layout = "auto"
    """`auto` takes the target's best; another that the target would compute wrongly is replaced by that, and told."""

    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        """Rewrite each table whose layout or attributes are not as they should be."""
        tables = find_block_tables(model)
        for found in tables:
            if isinstance(found, Unread):
                yield Skip(where=found.node.name or "", reason=found.reason)
            else:
                yield self._one(model, target, found)
        if not tables:
            yield Skip(where=model.path.name, reason="the model gathers rows of no quantized table")
        model.sweep()

    def _one(self, model: TailorModel, target: Target, found: FoundTable) -> Change | Skip:
        node, form = found.node, found.table.form
        layout, objection = self.layout, None
        if layout != "auto":
            objection = target.objection(layout, form)
        if layout == "auto" or objection is not None:
            layout = target.layout(form)  # type: ignore[assignment]  # the data names layouts as text
        where = node.name or ""
        if model.opset < LEAST_OPSET:
            return Skip(where=where, reason=f"the model's opset is {model.opset}, and other layouts need {LEAST_OPSET}")
        reason = f" instead of {self.layout}, which is wrong on {target.name}: {objection}" if objection else ""
        if found.layout == layout and not found.faults:
            return Skip(where=where, reason=f"its layout is {layout} and its attributes are explicit already{reason}")
        before = found.layout
        rewrite(model, found, layout)
        if found.faults:
            reason += f"; mended: {'; '.join(found.faults)}"
        return Change(
            where=where,
            what=f"layout {layout}{reason}",
            details={
                "layout_before": before,
                "layout_after": layout,
                "faults": list(found.faults),
                "certainty": found.certainty,
            },
        )


def rewrite(model: TailorModel, found: FoundTable, layout: str, table: BlockTable | None = None) -> None:
    """Write the table's Gather anew in `layout`, or that of another `table` of equal values."""
    dtype = found.output.dtype or found.table.read_as
    name = model.retire(found.node) or "gather"
    rows = gather(model, found.node, table or found.table, found.ids, layout, dtype, name)
    model.replace(found.output, rows)
