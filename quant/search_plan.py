"""Which grids k-quant's search tries; the search itself is in `search`."""

from __future__ import annotations

from typing import NamedTuple


class Plan(NamedTuple):
    """Which grids are tried: scales as multiples of the one that the block's range asks for, and zero points."""

    lowest: float
    """The least multiple."""
    step: float
    """From one multiple to the next."""
    scales: int
    """Number of multiples."""
    around: int
    """Zero points to either side of the one that centres the grid; none where the grid is symmetric."""
    near: int
    """Then, around the best: scales to either side."""
    near_step: float
    """From one of these to the next, as a part of the scale."""
    beside: int
    """With these, zero points to either side: one or none; none where the grid is symmetric."""
    refits: int
    """Times that the scale which suits the best codes gives new codes, and these another scale."""


NO_SEARCH = Plan(0.0, 0.0, 0, 0, 0, 0.0, 0, 0)
"""Plain rounding."""


def plan(width: int, *, symmetric: bool, weighted: bool) -> Plan:
    """Return the plan for codes of `width` bits.

    The plans were chosen on the weights of a real model: each ends within 0.6% (8 bits: 7%) of the error of a search
    twenty times as long. With few codes it pays to clip the largest weights, more so where importance says that these
    matter little. With 8 bits every scale near that of the range is as good as its neighbours: more tries, more luck.
    """
    if width == 8:
        return Plan(0.96, 0.06 / 11, 12, 0, 3, 0.001, 1, 1)
    if symmetric:
        return Plan(0.55, 0.65 / 11, 12, 0, 2, 0.02, 0, 1) if width == 4 else Plan(0.4, 1.6 / 15, 16, 0, 2, 0.03, 0, 1)
    if weighted:
        return Plan(0.62, 0.06, 11, 1, 2, 0.02, 0, 1) if width == 4 else Plan(0.36, 0.064, 16, 1, 2, 0.03, 1, 1)
    return Plan(0.95, 0.11, 3, 0, 0, 0.0, 0, 0) if width == 4 else Plan(0.7, 0.05, 10, 0, 2, 0.025, 1, 1)
