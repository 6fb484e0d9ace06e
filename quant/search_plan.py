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
    """Zero points to either side of that of the block's range; none where the grid is symmetric."""
    near: int
    """Then, around the best: scales to either side, with the zero point and its two neighbours."""
    near_step: float
    """From one of these to the next, as a part of the scale."""


NO_SEARCH = Plan(0.0, 0.0, 0, 0, 0, 0.0)
"""Plain rounding."""


def plan(width: int, *, symmetric: bool, weighted: bool) -> Plan:
    """Return the plan for codes of `width` bits.

    The plans were chosen on the weights of a real model: each ends within 0.6% (8 bits: 7%) of the error of a search
    twenty times as long. With few codes it pays to clip the largest weights, more so where importance says that these
    matter little. With 8 bits every scale near that of the range is as good as its neighbours: more tries, more luck.
    """
    if width == 8:
        return Plan(0.96, 0.06 / 11, 12, 0, 3, 0.001)
    if symmetric:
        return Plan(0.55, 0.65 / 11, 12, 0, 2, 0.02) if width == 4 else Plan(0.4, 1.6 / 15, 16, 0, 2, 0.03)
    if weighted:
        return Plan(0.6, 0.48 / 7, 8, 2, 2, 0.025) if width == 4 else Plan(0.4, 0.9 / 15, 16, 1, 2, 0.025)
    return Plan(0.9, 0.06, 4, 0, 2, 0.02) if width == 4 else Plan(0.7, 0.4 / 9, 10, 0, 2, 0.02)
