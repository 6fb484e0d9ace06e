"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["change", "size", "span"]


def size(count: int) -> str:
    """Return a number of bytes in decimal units, as "1.07 GB"."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}" if unit != "B" else f"{count} B"
        value /= 1000
    return f"{value:.3g} GB" if value < 999.5 else f"{value:,.0f} GB"


def change(before: float, after: float) -> str:
    """Return what has become of `before`, as "-84 %"; "" where nothing was there."""
    return f"{100 * (after - before) / before:+.1f} %" if before else ""


def span(numbers: list[int]) -> str:
    """Return a list of integers with its runs joined, as "0-2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
