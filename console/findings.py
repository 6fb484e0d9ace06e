"""Where two models part and which weights are to blame, as tables that fit 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnx_tailor.console.lines import print_line
from onnx_tailor.units import figure, size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from onnx_tailor.verify import Blame, Point, Trace

__all__ = ["layer_errors", "show_blame", "show_trace"]

_SHOWN = 10
"""Weights in the table of blame; --json has them all."""


def show_trace(console: Console, trace: Trace) -> None:
    """Print the first place that differs, the largest growth, what stands out, and the growth by layer."""
    if trace.first is None:
        print_line(console, f"trace: all {len(trace.points)} places hold the same values to the last bit")
        return
    print_line(console, f"trace: first different at {_place(trace.first)}")
    if trace.step is not None and trace.step != trace.first:
        print_line(console, f"trace: grows most at {_place(trace.step)}")
    if trace.outlier is not None:
        odd = trace.outlier
        print_line(
            console,
            f"trace: channel {odd.channel} of {odd.label} stands out: {_percent(odd.channel_error)} off where the "
            f"median channel is {_percent(odd.median_error)}",
            "yellow",
        )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer")
    for name in ("error at the end", "largest inside", "median inside"):
        table.add_column(name, justify="right")
    table.add_column("largest at")
    for layer, end, largest, median in layer_errors(trace.points):
        table.add_row(layer, *(_percent(value) for value in (end, largest.relative_error, median)), Text(largest.label))
    console.print(Padding(table, (0, 0, 0, 2)))


def layer_errors(points: Iterable[Point]) -> list[tuple[str, float, Point, float]]:
    """Return for each layer its name, the error of its last place, its worst place and the median of its errors."""
    layers: dict[str, list[Point]] = {}
    for point in points:
        layers.setdefault(point.label if point.layer is None else str(point.layer), []).append(point)
    found = []
    for name, inside in layers.items():
        errors = sorted(point.relative_error for point in inside)
        worst = max(inside, key=lambda point: point.relative_error)
        found.append((name, inside[-1].relative_error, worst, errors[len(errors) // 2]))
    return found


def show_blame(console: Console, blame: Blame) -> None:
    """Print the weights with the largest shares, each with the line that would mend it."""
    if not blame.shares:
        print_line(console, "blame: no weight of the candidate differs from the reference's")
    else:
        total = sum(share.kl for share in blame.shares)
        print_line(
            console,
            f"blame: each of {len(blame.shares)} weights alone in the otherwise original model, over "
            f"{blame.tokens} tokens; together {figure(total)} of the candidate's {figure(blame.kl)} nats",
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("weight", overflow="fold")
        table.add_column("KL", justify="right", no_wrap=True)
        table.add_column("bits", justify="right", no_wrap=True)
        table.add_column("mended by this line in nodes", overflow="fold")
        table.add_column("costs", justify="right", no_wrap=True)
        for share in blame.shares[:_SHOWN]:
            mend = share.mend or "(it is float already: take the reference's weight)"
            table.add_row(
                Text(share.label),
                figure(share.kl),
                str(share.bits or "float"),
                Text(mend),
                size(share.mend_bytes) if share.mend else "",
            )
        console.print(Padding(table, (0, 0, 0, 2)))
    for share in blame.shares:
        if share.odd_row is not None:
            print_line(
                console,
                f"blame: row {share.odd_row} of {share.label} ({share.weight}) is {_percent(share.odd_row_error)} off "
                f"where the median row is {_percent(share.relative_error)}: no rounding does that",
                "yellow",
            )
    for line in blame.skipped:
        print_line(console, f"blame: not tried: {line}", "dim")


def _percent(error: float) -> str:
    """Return a relative error in percent, with three digits however small it is."""
    return f"{100 * error:.3g} %"


def _place(point: Point) -> str:
    """Return a place with its error and its worst channel."""
    channel = "" if point.channel is None else f", most in channel {point.channel} ({_percent(point.channel_error)})"
    return f"{point.label}: {_percent(point.relative_error)}{channel}"
