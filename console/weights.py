"""The weights that a run quantizes or leaves alone, as a table: those alike but for their layer in one row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from onnx_tailor.units import size, span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_tailor.report import Change, PassReport, Skip

__all__ = ["decided_by", "is_weight", "weights"]

_COLOURS = {2: "red", 4: "yellow", 8: "green"}
"""Of the bits; float is left plain."""
_FLOAT = 1 << 10
"""Sorts what stays in float behind all bits."""


def is_weight(result: Change | Skip) -> bool:
    """Whether a result concerns one candidate weight, rather than a node or the whole model."""
    return "bytes" in result.details and "shape" in result.details


def weights(done: PassReport) -> Table | None:
    """Return the table of a pass's candidate weights, the largest rows first; None where it had none."""
    rows: dict[tuple[Any, ...], list[Change | Skip]] = {}
    results: list[Change | Skip] = [*done.changes, *done.skips]
    for result in results:
        if is_weight(result):
            rows.setdefault(_kind(result), []).append(result)
    if not rows:
        return None
    measured = any("relative_error" in change.details for change in done.changes)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("role", no_wrap=True)
    table.add_column("layers", overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("bits", justify="right", no_wrap=True)
    table.add_column("before", justify="right", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    if measured:
        table.add_column("error", justify="right", no_wrap=True)
    table.add_column("by", overflow="fold")
    for alike in sorted(rows.values(), key=_order):
        table.add_row(*_row(alike, measured=measured))
    return table


def _kind(result: Change | Skip) -> tuple[Any, ...]:
    """Return what makes two weights one row."""
    told = result.details
    name = told["role"] or str(result.where)
    reason = getattr(result, "reason", None)
    return (name, tuple(told["shape"]), told.get("bits"), told.get("recipe_line"), tuple(told.get("rule", ())), reason)


def _order(alike: Sequence[Change | Skip]) -> tuple[int, int, str]:
    total = sum(int(result.details["bytes"]) for result in alike)
    return int(alike[0].details.get("bits", _FLOAT) == _FLOAT), -total, str(alike[0].details["role"])


def _row(alike: Sequence[Change | Skip], *, measured: bool) -> list[Text]:
    """Return the cells of one row."""
    first = alike[0].details
    bits = first.get("bits")
    before = sum(int(result.details["bytes"]) for result in alike)
    after = sum(int(getattr(result, "bytes_after", result.details["bytes"])) for result in alike)
    layers = span([result.details["layer"] for result in alike if result.details["layer"] is not None])
    many = f" x{len(alike)}" if not layers and len(alike) > 1 else ""
    cells = [
        Text(f"{first['role'] or alike[0].where}{many}"),
        Text(layers),
        Text("x".join(str(length) for length in first["shape"])),
        Text(str(bits or first["dtype"]), style=_COLOURS.get(bits or 0, "")),
        Text(size(before)),
        Text(size(after) if bits else "-"),
    ]
    if measured:
        errors = [result.details["relative_error"] for result in alike if "relative_error" in result.details]
        cells.append(Text(f"{100 * max(errors):.2f} %" if errors else ""))
    cells.append(Text(decided_by(first)))
    return cells


def decided_by(details: Mapping[str, Any]) -> str:
    """Return the option that decided over a weight and its line in the recipe, as "role:down, line 8"."""
    key = details.get("rule", ())
    file, _, line = str(details.get("recipe_line", "")).rpartition(":")
    return f"{key[-1]}, {'--set' if file == '--set' else 'line'} {line}" if key else ""
