"""What rounding each weight costs the model's predictions, measured group by group and shared out by size of error.

Each group, a role or a layer, is quantized alone, and the divergence of the predictions from the original's measured
with ONNX Runtime. A weight's own part is its relative output error, scaled so that the parts of every measured group
sum up to what was measured (iterative proportional fitting). Divergences add up as long as they are small, and
follow the square of the error: that gives the cost at bits that were not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_tailor.graph.candidates import Candidate
from onnx_tailor.quant import Bits

_ROUNDS = 20
"""Of proportional fitting; the fit of roles and layers settles within a few."""
_FLOOR = 1e-7
"""Nats, below which a measured divergence says nothing but that it is small."""


@dataclass(frozen=True)
class Group:
    """Weights that are quantized together to measure what that costs."""

    name: str
    members: tuple[int, ...]
    """Their numbers among the candidates."""


def find_groups(candidates: Sequence[Candidate]) -> list[Group]:
    """Return the roles and the layers of the candidates; each candidate is in a role, and in a layer if it has one."""
    groups: dict[str, list[int]] = {}
    for number, candidate in enumerate(candidates):
        groups.setdefault(f"role {candidate.place.role or 'unknown'}", []).append(number)
        if candidate.place.layer is not None:
            groups.setdefault(f"layer {candidate.place.layer}", []).append(number)
    return [Group(name, tuple(members)) for name, members in groups.items()]


def share_out(
    errors: npt.NDArray[np.float64], groups: Sequence[Group], measured: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Return each weight's part of the divergence at the bits that were measured.

    `errors` [weights] are relative output errors at these bits; `measured` is one divergence for each group.
    """
    parts = np.maximum(errors, 1e-12)
    for _ in range(_ROUNDS):
        for group, divergence in zip(groups, measured, strict=True):
            members = list(group.members)
            parts[members] *= max(divergence, _FLOOR) / parts[members].sum()
    return parts


@dataclass(frozen=True)
class Step:
    """Giving one weight more bits."""

    weight: int
    choice: int
    """The index of its new choice."""
    bytes: int
    gain: float


def choose(
    sizes: Sequence[Mapping[Bits, int]], costs: Sequence[Mapping[Bits, float]], budget: int
) -> list[Bits] | None:
    """Return the bits of each weight with the least total cost, near enough, within `budget` bytes; None if none fit.

    `sizes` and `costs` give bytes and divergence by bits. The weight whose next step gains most for each byte goes
    first, over the lower convex hull of its choices, which is the best there is but for the last step.
    """
    hulls = [_hull(size, cost) for size, cost in zip(sizes, costs, strict=True)]
    chosen = [0] * len(hulls)
    left = budget - sum(hull[0][1] for hull in hulls)
    if left < 0:
        return None
    for step in sorted(_steps(hulls), key=lambda step: (-step.gain / step.bytes, step.weight)):
        # Steps of one weight stand in their order, since gains for each byte fall along a hull.
        if step.bytes <= left and chosen[step.weight] == step.choice - 1:
            chosen[step.weight] = step.choice
            left -= step.bytes
    return [hull[index][0] for hull, index in zip(hulls, chosen, strict=True)]


def _steps(hulls: Sequence[Sequence[tuple[Bits, int, float]]]) -> Iterator[Step]:
    for weight, hull in enumerate(hulls):
        for choice in range(1, len(hull)):
            (_, before, worse), (_, after, better) = hull[choice - 1], hull[choice]
            yield Step(weight, choice, after - before, worse - better)


def _hull(sizes: Mapping[Bits, int], costs: Mapping[Bits, float]) -> list[tuple[Bits, int, float]]:
    """Return (bits, bytes, cost) of the choices on the lower convex hull, by rising bytes."""
    hull: list[tuple[Bits, int, float]] = []
    for bits in sorted(sizes, key=lambda bits: (sizes[bits], costs[bits])):
        point = (bits, sizes[bits], costs[bits])
        if hull and (point[2] >= hull[-1][2] or point[1] == hull[-1][1]):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(first: tuple[Bits, int, float], second: tuple[Bits, int, float]) -> float:
    """Return the gain for each byte."""
    return (first[2] - second[2]) / (second[1] - first[1])
