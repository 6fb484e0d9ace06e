"""What rounding each weight costs the model's predictions, measured group by group and shared out by size of error.

Each group, a role or a layer, is quantized alone, and the divergence of the predictions from the original's measured
with ONNX Runtime. A weight's own part is its relative output error, scaled so that the parts of every measured group
sum up to what was measured (iterative proportional fitting). Divergences add up as long as they are small, and
follow the square of the error: that gives the cost at bits that were not measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from onnx_tailor.graph.meaning.roles import Place

Form = TypeVar("Form", bound=Hashable)
"""A way to store a weight, as its bits."""

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


def find_groups(places: Sequence[Place]) -> list[Group]:
    """Return the roles and the layers of weights; each weight is in a role, and in a layer if it has one."""
    groups: dict[str, list[int]] = {}
    for number, place in enumerate(places):
        groups.setdefault(f"role {place.role or 'unknown'}", []).append(number)
        if place.layer is not None:
            groups.setdefault(f"layer {place.layer}", []).append(number)
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
    """Giving one weight more bytes."""

    weight: int
    choice: int
    """The index of its new choice."""
    bytes: int
    gain: float


def choose(
    sizes: Sequence[Mapping[Form, int]], costs: Sequence[Mapping[Form, float]], budget: int
) -> list[Form] | None:
    """Return the form of each weight with the least total cost, near enough, within `budget` bytes; None if none fit.

    `sizes` and `costs` give bytes and divergence by form. The weight whose next step gains most for each byte goes
    first, over the lower convex hull of its choices, which is the best there is but for the last step.
    """
    hulls = [_hull(size, cost) for size, cost in zip(sizes, costs, strict=True)]
    chosen = [0] * len(hulls)
    left = budget - sum(hull[0][1] for hull in hulls)
    if left < 0:
        return None
    for step in _steps(hulls):
        # Steps of one weight stand in their order, since gains for each byte fall along a hull.
        if step.bytes <= left and chosen[step.weight] == step.choice - 1:
            chosen[step.weight] = step.choice
            left -= step.bytes
    return [hull[index][0] for hull, index in zip(hulls, chosen, strict=True)]


def reach(
    sizes: Sequence[Mapping[Form, int]], costs: Sequence[Mapping[Form, float]], limit: float
) -> list[Form] | None:
    """Return the form of each weight with the fewest bytes, near enough, whose costs sum up to `limit` at most."""
    hulls = [_hull(size, cost) for size, cost in zip(sizes, costs, strict=True)]
    chosen = [0] * len(hulls)
    steps = _steps(hulls)
    total = sum(hull[0][2] for hull in hulls)
    while total > limit:
        step = next(steps, None)
        if step is None:
            return None
        chosen[step.weight] = step.choice
        total = sum(hull[index][2] for hull, index in zip(hulls, chosen, strict=True))
    return [hull[index][0] for hull, index in zip(hulls, chosen, strict=True)]


def _steps(hulls: Sequence[Sequence[tuple[Form, int, float]]]) -> Iterator[Step]:
    """Iterate over all steps, what gains most for each byte first."""
    steps = [
        Step(weight, choice, after - before, worse - better)
        for weight, hull in enumerate(hulls)
        for choice, ((_, before, worse), (_, after, better)) in enumerate(itertools.pairwise(hull), 1)
    ]
    return iter(sorted(steps, key=lambda step: (-step.gain / step.bytes, step.weight, step.choice)))


def _hull(sizes: Mapping[Form, int], costs: Mapping[Form, float]) -> list[tuple[Form, int, float]]:
    """Return (form, bytes, cost) of the choices on the lower convex hull, by rising bytes."""
    hull: list[tuple[Form, int, float]] = []
    for form in sorted(sizes, key=lambda form: (sizes[form], costs[form])):
        point = (form, sizes[form], costs[form])
        if hull and (point[2] >= hull[-1][2] or point[1] == hull[-1][1]):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(first: tuple[Form, int, float], second: tuple[Form, int, float]) -> float:
    """Return the gain for each byte."""
    return (first[2] - second[2]) / (second[1] - first[1])
