"""Numbers as people read them."""

from __future__ import annotations

import re

from onnx_tailor.errors import UsageError

__all__ = ["change", "figure", "parse_size", "percent", "size", "span"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_size(text: str) -> int:
    """Return the bytes that "2GB", "500 MB" or "1.5GiB" says.

    Raises:
        UsageError: it says none.
    """
    found = re.fullmatch(r"([0-9]+(?:[.][0-9]+)?) ?([a-z]*)", text.strip(), re.IGNORECASE)
    factor = _UNITS.get(found[2].upper()) if found else None
    if found is None or factor is None or float(found[1]) * factor < 1:
        raise UsageError(f"{text!r} is no size; write it as 2GB, 500MB or 1GiB")
    return int(float(found[1]) * factor)


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


def figure(value: float | None) -> str:
    """Return a measured figure with four digits."""
    return "" if value is None else f"{value:.4g}"


def percent(share: float | None) -> str:
    """Return a share of 0 to 1 in percent."""
    return "" if share is None else f"{100 * share:.2f} %"
