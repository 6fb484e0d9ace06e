"""Choose how each weight is stored so that the models compute as they did, as nearly as a size allows."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from onnx_tailor.calibration.sensitivity import choose, find_groups, reach, share_out
from onnx_tailor.errors import OptionError
from onnx_tailor.graph.meaning.roles import Place
from onnx_tailor.quant import Bits, BlockFormat, dequantize, gptq, quantize
from onnx_tailor.weights.factors import SharedFactor
from onnx_tailor.weights.view import Window

_CHUNKS, _ROWS = 8, 32
"""Runs of rows, and rows of each, that stand for a whole weight where its error is estimated."""
ROUNDS = 3
"""Times that a model is quantized and measured to keep within a divergence, where one of them does."""
MOST_ROUNDS = 8
"""Times until none is expected to."""
_MARGIN = 0.97
"""Of the limit, which the next round aims at."""


class Form(NamedTuple):
    """A way to store a weight."""

    bits: Bits | Literal["float"]
    block_size: int = 0
    """0 for float."""


FLOAT = Form("float")


@dataclass(frozen=True)
class Weighed:
    """One weight, or the stacks of one mixture, as the choice sees it."""

    name: str
    place: Place
    views: tuple[Window, ...]
    """Matrices [N, K]."""
    formats: Mapping[Form, BlockFormat]
    """How it could be stored with fewer bits."""
    sizes: Mapping[Form, int]
    """Stored bytes by form, float among them."""
    measured: Form
    """The form in which its group is measured: large enough an error to see, small enough to add up."""
    importance: npt.NDArray[np.float32] | None
    factor: SharedFactor | None = None
    """The second moments of its inputs, where gptq will round it."""

    @property
    def pattern(self) -> str:
        """A pattern of `nodes` that means it alone: its name, with the signs of patterns taken literally."""
        return glob.escape(self.name)


@dataclass(frozen=True)
class Plan:
    """What was chosen."""

    forms: tuple[Form, ...]
    """In the order of the weights."""
    divergence: float
    """What the sum of the parts predicts, in the unit of the costs; measured where a divergence was the goal."""


def measured_costs(
    weights: Sequence[Weighed], divergence: Callable[[Mapping[int, Form]], float]
) -> list[dict[Form, float]]:
    """Return what each weight costs in each form, in the unit of `divergence`.

    `divergence` quantizes the weights of these numbers, and no others, and measures what that does.
    """
    groups = find_groups([each.place for each in weights])
    found = [divergence({number: weights[number].measured for number in group.members}) for group in groups]
    # What was measured was rounded without gptq; its gain differs from weight to weight, and is known by their errors.
    plain = [_error(each, each.measured, None) for each in weights]
    parts = share_out(np.array(plain), groups, found)
    costs = []
    for each, part, before in zip(weights, parts, plain, strict=True):
        unit = part / max(before, 1e-12)
        costs.append({form: unit * _error(each, form, each.factor) for form in each.formats} | {FLOAT: 0.0})
    return costs


def within_bytes(weights: Sequence[Weighed], costs: Sequence[Mapping[Form, float]], budget: int) -> Plan:
    """Return the plan that costs least within `budget` bytes for these weights.

    Raises:
        OptionError: even the fewest bits are too many.
    """
    chosen = choose([each.sizes for each in weights], costs, budget)
    if chosen is None:
        raise _too_small(budget, sum(min(each.sizes.values()) for each in weights))
    return _plan(costs, chosen)


def alike(weights: Sequence[Weighed], budget: int) -> Plan:
    """Return the largest form that all these weights can have within `budget` bytes, where nothing is known of them.

    Raises:
        OptionError: even the smallest is too large.
    """
    shared = set.intersection(*(set(each.sizes) for each in weights))
    totals = {form: sum(each.sizes[form] for each in weights) for form in shared}
    fitting = [form for form in shared if totals[form] <= budget]
    if not fitting:
        raise _too_small(budget, min(totals.values()))
    best = max(fitting, key=lambda form: (totals[form], form.block_size))
    return Plan((best,) * len(weights), 0.0)


def _too_small(budget: int, least: int) -> OptionError:
    return OptionError(
        f"the goal leaves {max(0, budget):,} bytes for the weights, but with the fewest bits they take {least:,}; "
        f"give at least {least - budget:,} bytes more, larger blocks, or, where a token table stays in float, "
        "`embeddings: true`"
    )


def within_divergence(
    weights: Sequence[Weighed], costs: Sequence[Mapping[Form, float]], limit: float, measured: Callable[[Plan], float]
) -> Plan:
    """Return the smallest plan whose divergence, as `measured` with the method that will be used, is below `limit`.

    Costs are sums of what other ways of rounding cost one at a time: each round corrects them by what it measured.

    Raises:
        OptionError: no form is as near.
    """
    factor, nearest = 1.0, float("inf")
    best: tuple[int, Plan] | None = None
    for turn in range(MOST_ROUNDS):
        if turn >= ROUNDS and best is not None:
            break
        chosen = reach([each.sizes for each in weights], costs, factor * limit)
        if chosen is None:
            break
        plan = _plan(costs, chosen)
        found = measured(plan)
        nearest = min(nearest, found)
        size = sum(each.sizes[form] for each, form in zip(weights, chosen, strict=True))
        if found <= limit and (best is None or size < best[0]):
            best = size, replace(plan, divergence=found)
        further = _MARGIN * plan.divergence / max(found, 1e-12)
        factor = further if found <= limit else min(further, _MARGIN * factor)
    if best is None:
        raise OptionError(f"a divergence of {limit:g} was not reached, only {nearest:.4g}; give more", key=("kl",))
    return best[1]


def _plan(costs: Sequence[Mapping[Form, float]], chosen: Sequence[Form]) -> Plan:
    return Plan(tuple(chosen), sum(cost[form] for cost, form in zip(costs, chosen, strict=True)))


def _error(each: Weighed, form: Form, factor: SharedFactor | None) -> float:
    """Return the error of the outputs relative to the outputs, for some rows, rounded by gptq if `factor` is given.

    The inputs correlate as is known of them; where nothing is, they do not.
    """
    fmt = each.formats[form]
    error = total = 0.0
    for view in each.views:
        rows, columns = view.shape
        step = max(_ROWS, rows // _CHUNKS)
        for start in range(0, rows, step):
            weight = view.rows(start, min(start + _ROWS, rows)).read().astype(np.float32)
            if factor is not None and each.importance is not None:
                stored = gptq(weight, fmt, factor.get(), each.importance)
            else:
                stored = quantize(weight, fmt, "k_quant", each.importance)
            error += _squares(each, dequantize(stored, columns, fmt) - weight)
            total += _squares(each, weight)
    return error / total if total else 0.0


def _squares(each: Weighed, rows: npt.NDArray[np.float32]) -> float:
    """Return the sum over `rows` [n, K] of the squares of what they yield."""
    if each.factor is not None:
        return float(np.einsum("rk,rk->", rows @ each.factor.get().hessian, rows, dtype=np.float64))
    cost = 1.0 if each.importance is None else each.importance.astype(np.float64)
    return float(np.sum(np.square(rows, dtype=np.float64) * cost))
