"""What `inspect` found, as a table by layer and role."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_tailor.console.lines import print_line
from onnx_tailor.units import size, span

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["show_inspection"]

_TIED = {
    "tied": "tied: the table and the head read one copy",
    "equal": "not tied, but equal: tie-embeddings can make them one",
    "different": "not tied, and their values differ",
    "none": "nothing to tie",
}

_Kind = tuple[str, str, str, str]


def show_inspection(inspection: Mapping[str, Any]) -> None:
    """Print the JSON form of an `Inspection`, one section for each file."""
    console = Console()
    for file in inspection["files"]:
        _show_file(console, file)


def _show_file(console: Console, file: Mapping[str, Any]) -> None:
    """Print one file: its size, table, head and tie, and its projections."""
    print_line(console, str(file["file"]), "bold")
    found = file["size"]
    print_line(
        console,
        f"  {size(found['weight_bytes'])} of weights, {found['parameters']:,} parameters, "
        f"{found['bits_per_weight']:.3f} bits per weight",
    )
    for table in file["tables"]:
        dtype, shape = table["dtype"], _shape(table["shape"])
        form = f"{table['bits']} bits, layout {table['layout']}" if "layout" in table else dtype.lower()
        print_line(console, f"  table {table['weight']}: {shape} {form}, {size(table['bytes'])}")
        if "unclear" in table:
            print_line(console, f"    not understood: {table['unclear']}")
    for head in file["heads"]:
        facts = ", ".join(f"{key} {value}" for key, value in head.items() if value is not None)
        print_line(console, f"  head {facts}")
    tied = file["tied"]
    proof = f" ({tied['proof']})" if tied.get("proof") else ""
    print_line(console, f"  {_TIED.get(tied['state'], tied['state'])}{proof}")
    for receipt in file["receipts"]:
        print_line(console, f"  made by {_receipt(receipt)}")
    if file["projections"]:
        console.print(_projections(file["projections"]))


def _receipt(receipt: Mapping[str, Any]) -> str:
    """Return what the file itself says about a run that made it."""
    before, after = receipt["weight_bytes"]
    line = (
        f"onnx-tailor {receipt['version']} with {receipt['recipe']} for {receipt['target']}: "
        f"{size(before)} -> {size(after)}"
    )
    for done in receipt["passes"]:
        line += f"; {done['name']}: {done['changes']} changed, {done['skips']} left alone"
        if (worst := done.get("worst")) is not None:
            line += f", worst error {100 * worst['relative_error']:.2f} % in {worst['weight']}"
    return line


def _projections(projections: list[Mapping[str, Any]]) -> Table:
    """Return the projections, those alike but for their layer in one row."""
    rows: dict[_Kind, list[Mapping[str, Any]]] = {}
    for projection in projections:
        bits = projection["bits"]
        form = f"{bits} bits" if bits <= 8 else projection["dtype"].lower()
        form += ", QDQ" if projection.get("form") == "qdq" else ""
        known = projection["recognised_by"] or ""
        kind = (projection["role"] or "?", _shape(projection["shape"]), form, known)
        rows.setdefault(kind, []).append(projection)
    table = Table("role", "layers", "count", "shape", "type", "bytes", "known by")
    for name in ("count", "bytes"):
        column = next(column for column in table.columns if column.header == name)
        column.justify = "right"
        column.no_wrap = True
    for (role, shape, form, known), alike in rows.items():
        layers = span([p["layer"] for p in alike if p["layer"] is not None])
        total = size(sum(p["bytes"] for p in alike))
        table.add_row(*(Text(cell) for cell in (role, layers, str(len(alike)), shape, form, total, known)))
    return table


def _shape(shape: list[int]) -> str:
    """Return a shape as "640x1024"."""
    return "x".join(str(length) for length in shape)
