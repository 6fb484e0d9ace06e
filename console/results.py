"""The result of `run` as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from onnx_tailor.console.lines import print_line
from onnx_tailor.console.weights import weights
from onnx_tailor.units import change, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_tailor.calibration.calibrate import CalibrationReport
    from onnx_tailor.output.check import Checked
    from onnx_tailor.report import Change, Forecast, PassReport, Report

__all__ = ["show_calibration", "show_check", "show_report"]

_NAMED = 3
"""Places that are named when several are alike."""


def show_report(report: Report) -> None:
    """Print what each pass did, weight by weight, and the model's size before and after."""
    console = Console()
    several = len({done.file for done in report.passes}) > 1
    for done in report.passes:
        where = f" ({done.file})" if several else ""
        print_line(console, f"{done.name}{where}", "bold")
        for line in _changes(done):
            print_line(console, f"  {line}")
        for line in _skips(done):
            print_line(console, f"  {line}", "dim")
        if not done.changes and not done.skips:
            print_line(console, "  nothing to do", "dim")
        if (table := weights(done)) is not None:
            console.print(Padding(table, (0, 0, 0, 2)))
    console.print(_sizes(report))
    if report.forecast is not None:
        _forecast(console, report.forecast)
    end = "dry run: nothing was written" if report.out is None else f"wrote {report.out}"
    print_line(console, f"{end} ({report.seconds:.1f} s, target {report.target})")


def _sizes(report: Report) -> Table:
    """Return the table of the model's size before and after."""
    before, after = report.before, report.after
    table = Table("", "before", "after", "change")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row(
        "weights", size(before.weight_bytes), size(after.weight_bytes), change(before.weight_bytes, after.weight_bytes)
    )
    table.add_row("files", size(before.file_bytes), size(after.file_bytes), change(before.file_bytes, after.file_bytes))
    table.add_row(
        "parameters", f"{before.parameters:,}", f"{after.parameters:,}", change(before.parameters, after.parameters)
    )
    table.add_row(
        "bits per weight",
        f"{before.bits_per_weight:.3f}",
        f"{after.bits_per_weight:.3f}",
        change(before.bits_per_weight, after.bits_per_weight),
    )
    return table


def _forecast(console: Console, expected: Forecast) -> None:
    """Print what a run would write and need."""
    for name, count in expected.file_bytes.items():
        print_line(console, f"{name}: {size(count)}")
    needs = f"disk {size(expected.disk_bytes)}, memory at most about {size(expected.memory_bytes)}"
    print_line(console, f"needs {needs}; reads {size(expected.read_bytes)} of weights")
    if expected.seconds is not None:
        print_line(console, f"writing takes about {max(1, round(expected.seconds))} s on this machine")


def show_check(found: Checked) -> None:
    """Print which files are as they were written."""
    console = Console()
    for name in found.missing:
        print_line(console, f"missing: {name}", "red")
    for name in found.different:
        print_line(console, f"not the bytes that were written: {name}", "red")
    for name in found.unknown:
        print_line(console, f"not in the report: {name}", "dim")
    total = len(found.equal) + len(found.missing) + len(found.different)
    print_line(console, f"{len(found.equal)} of {total} files are as the report says")


def _changes(done: PassReport) -> list[str]:
    """Return a line for each kind of change, with its bytes."""
    kinds: dict[str, list[Change]] = {}
    for made in done.changes:
        kinds.setdefault(made.what, []).append(made)
    lines = []
    for what, alike in kinds.items():
        before, after = sum(each.bytes_before for each in alike), sum(each.bytes_after for each in alike)
        moved = f": {size(before)} -> {size(after)}" if before != after else ""
        lines.append(f"{_places([each.where for each in alike], named=1)}: {what}{moved}")
    return lines


def _skips(done: PassReport) -> list[str]:
    """Return a line for each reason why something was left alone."""
    reasons: dict[str, list[str]] = {}
    for skip in done.skips:
        reasons.setdefault(skip.reason, []).append(skip.where)
    return [f"left alone: {_places(where)}: {reason}" for reason, where in reasons.items()]


def _places(where: Sequence[str], named: int = _NAMED) -> str:
    """Name the places, or count them and name the first."""
    if len(where) <= named:
        return ", ".join(where)
    return f"{len(where)} places (first {where[0]})"


def show_calibration(report: CalibrationReport) -> None:
    """Print what was gathered, and what the tokens are worth."""
    console = Console()
    kind = "mean squares and Hessians" if report.hessians else "mean squares"
    print_line(console, f"{kind} of {report.inputs} inputs over {report.tokens:,} tokens, {report.source}")
    if report.random:
        advice = "a text is better: give --text FILE and --tokenizer tokenizer.json, or put tokenizer.json beside MODEL"
        print_line(console, f"random tokens tell little of what the model will read; {advice}", "yellow")
    for where, reason in report.skipped.items():
        print_line(console, f"  left alone: {where}: {reason}", "dim")
    print_line(console, f"wrote {report.out} ({size(report.file_bytes)})")
