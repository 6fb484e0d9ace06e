"""What `verify` measured, as tables that fit 80 columns."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_tailor.console.findings import show_blame, show_trace
from onnx_tailor.console.lines import print_line
from onnx_tailor.units import figure, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_tailor.console.measuring import Measured
    from onnx_tailor.verify import Comparison

__all__ = ["short_names", "show_measured"]

_SHOWN_OUTPUTS = 8
"""Outputs in the table; a model has two for each layer."""
_SHOWN_TOKENS = 5
"""Worst tokens in the table; --json has them all."""


def show_measured(measured: Sequence[Measured], *, trace: bool = False) -> None:
    """Print how far each candidate is from the reference, side by side if several, and the limits that it exceeds.

    Without `trace`, a trace that only the report's page needed is not printed.
    """
    if not measured:
        return
    console = Console()
    found = [each.comparison for each in measured]
    names = short_names([comparison.candidate for comparison in found])
    if len(found) == 1:
        _show(console, found[0])
    else:
        console.print(_side_by_side(found, names))
    for name, each in zip(names, measured, strict=True):
        if len(found) > 1 and ((trace and each.trace) or each.blame):
            print_line(console, name, "bold")
        if trace and each.trace is not None:
            show_trace(console, each.trace)
        if each.blame is not None:
            show_blame(console, each.blame)
    for name, each in zip(names, measured, strict=True):
        for line in each.exceeded:
            print_line(console, f"limit exceeded: {f'{name}: ' if len(found) > 1 else ''}{line}", "red")
    for note in dict.fromkeys(note for each in found for note in each.notes):
        print_line(console, note, "yellow")
    print_line(console, f"{found[0].tokens:,} tokens, {found[0].source}", "dim")
    if found[0].random:
        print_line(console, "random tokens show whether two models compute the same; --text measures quality", "dim")


def _show(console: Console, comparison: Comparison) -> None:
    """Print the tables of one candidate."""
    if comparison.kl_mean is not None:
        console.print(_figures(comparison))
    if comparison.worst:
        console.print(_worst(comparison))
    console.print(_outputs(comparison))
    if len(comparison.outputs) > _SHOWN_OUTPUTS:
        more = len(comparison.outputs) - _SHOWN_OUTPUTS
        said = "1 other output, which differs" if more == 1 else f"{more} other outputs, which differ"
        print_line(console, f"and {said} no more", "dim")
    for title, names in (
        ("only in the reference", comparison.only_reference),
        ("only in the candidate", comparison.only_candidate),
    ):
        if names:
            print_line(console, f"{title}: {', '.join(names)}")


def _figures(comparison: Comparison) -> Table:
    """Return the table of the figures over the logits."""
    table = Table("", "reference", "candidate")
    for column in table.columns[1:]:
        column.justify = "right"
    if comparison.perplexity_reference is not None:
        table.add_row(
            "perplexity" + (" (random: says nothing)" if comparison.random else ""),
            figure(comparison.perplexity_reference),
            figure(comparison.perplexity_candidate),
        )
    table.add_row("KL divergence, mean (nats)", "", figure(comparison.kl_mean))
    table.add_row("KL divergence, 99th percentile", "", figure(comparison.kl_p99))
    table.add_row("KL divergence, largest", "", figure(comparison.kl_max))
    table.add_row("top-1 agreement", "", percent(comparison.top1_agreement))
    table.add_row("top-5 agreement", "", percent(comparison.top5_agreement))
    if (written := comparison.greedy) is not None:
        table.add_row(
            f"equal greedy text, mean of {len(written.lengths)}", "", f"{written.mean:.4g} of {written.steps} tokens"
        )
    if comparison.decode_difference is not None:
        table.add_row(
            "decode against prefill",
            figure(comparison.decode_difference_reference),
            figure(comparison.decode_difference),
        )
    return table


def _worst(comparison: Comparison) -> Table:
    """Return the table of the tokens after which the models are furthest apart."""
    table = Table("KL", "after", "reference", "candidate", title="furthest apart", title_justify="left")
    table.columns[0].justify = "right"
    for token in comparison.worst[:_SHOWN_TOKENS]:
        cells = (token.context, token.reference, token.candidate)
        table.add_row(figure(token.kl), *(Text(_visible(cell)) for cell in cells))
    return table


def _outputs(comparison: Comparison) -> Table:
    """Return the table of the outputs that differ most."""
    table = Table("output", "largest difference", "relative", "where")
    ordered = sorted(comparison.outputs, key=lambda output: output.max_rel, reverse=True)
    for output in ordered[:_SHOWN_OUTPUTS]:
        place = ", ".join(str(index) for index in output.where)
        table.add_row(
            Text(output.name, overflow="fold"), figure(output.max_abs), figure(output.max_rel), Text(f"[{place}]")
        )
    return table


def _side_by_side(found: Sequence[Comparison], names: Sequence[str]) -> Table:
    """Return one row for each candidate."""
    heads = ("perplexity", "KL", "KL 99 %", "top-1", "top-5") if found[0].kl_mean is not None else ()
    table = Table("candidate", *(heads or ("largest difference of an output",)))
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    for name, each in zip(names, found, strict=True):
        cells = (
            figure(each.perplexity_candidate),
            figure(each.kl_mean),
            figure(each.kl_p99),
            percent(each.top1_agreement),
            percent(each.top5_agreement),
        )
        largest = max(output.max_rel for output in each.outputs)
        table.add_row(Text(name, overflow="fold"), *(cells if heads else (figure(largest),)))
    return table


def short_names(files: Sequence[str]) -> list[str]:
    """Return the files' paths without what they have in common at the start and the end."""
    parts = [PurePath(file).parts for file in files]
    if len(set(parts)) < 2:
        return list(files)
    least = min(len(each) for each in parts)
    start = next((at for at in range(least) if len({each[at] for each in parts}) > 1), least)
    room = least - start - 1  # what is left in the shortest, without its last part
    end = next((at for at in range(1, room + 2) if len({each[-at] for each in parts}) > 1), 1) - 1
    return [str(PurePath(*each[start : len(each) - end])) for each in parts]


def _visible(text: str) -> str:
    """Return the text on one line, its line breaks and control characters shown."""
    return "".join(char if char.isprintable() else "\u21b5" if char == "\n" else "\u00b7" for char in text)
