from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_tailor.calibration.bit_budget import FLOAT, Form, Plan, Weighed, within_divergence
from onnx_tailor.calibration.goal import parse_goal
from onnx_tailor.calibration.sensitivity import Group, choose, reach, share_out
from onnx_tailor.errors import OptionError
from onnx_tailor.graph.meaning.roles import Place

WEIGHT = st.tuples(st.integers(1, 50), st.floats(0.01, 10), st.floats(0.05, 0.9), st.floats(0.05, 0.9))


def weights(drawn: list[tuple[int, float, float, float]]) -> tuple[list[Any], list[Any]]:
    sizes = [{2: 2 * n, 4: 4 * n, 8: 8 * n} for n, *_ in drawn]
    costs = [{2: cost, 4: cost * first, 8: cost * first * second} for _, cost, first, second in drawn]
    return sizes, costs


@settings(deadline=None)
@given(drawn=st.lists(WEIGHT, min_size=1, max_size=5), part=st.floats(0, 1))
def test_the_choice_fits_and_is_near_the_best(drawn: list[tuple[int, float, float, float]], part: float) -> None:
    sizes, costs = weights(drawn)
    least, most = (sum(size[bits] for size in sizes) for bits in (2, 8))
    budget = int(least + part * (most - least))
    chosen = choose(sizes, costs, budget)
    assert chosen is not None
    total = sum(size[bits] for size, bits in zip(sizes, chosen, strict=True))
    assert total <= budget
    cost = sum(cost[bits] for cost, bits in zip(costs, chosen, strict=True))
    # What it spends, no other choice of as many bytes spends much better: it differs by the last step at most.
    best = min(
        sum(cost[bits] for cost, bits in zip(costs, bits_of, strict=True))
        for bits_of in itertools.product((2, 4, 8), repeat=len(sizes))
        if sum(size[bits] for size, bits in zip(sizes, bits_of, strict=True)) <= budget
    )
    assert cost <= best + max(max(each.values()) for each in costs)


def test_too_small_a_budget_has_no_choice() -> None:
    sizes, costs = weights([(10, 1.0, 0.5, 0.5)])
    assert choose(sizes, costs, 19) is None
    assert choose(sizes, costs, 20) == [2]
    assert choose(sizes, costs, 10_000) == [8]


def test_bits_go_where_a_byte_gains_most() -> None:
    sizes, costs = weights([(10, 1.0, 0.1, 0.1), (10, 5.0, 0.1, 0.1), (40, 5.0, 0.1, 0.1)])
    assert choose(sizes, costs, 120 + 20) == [2, 4, 2]
    assert choose(sizes, costs, 120 + 20 + 80) == [2, 4, 4]


def test_more_bits_that_gain_nothing_are_not_bought() -> None:
    assert choose([{2: 2, 4: 4, 8: 8}], [{2: 1.0, 4: 0.5, 8: 0.5}], 100) == [4]


def test_parts_sum_up_to_what_was_measured() -> None:
    groups = [Group("role a", (0, 1)), Group("role b", (2, 3)), Group("layer 0", (0, 2)), Group("layer 1", (1, 3))]
    true = np.array([0.3, 0.1, 0.05, 0.02])
    measured = [true[list(group.members)].sum() for group in groups]
    parts = share_out(np.array([0.2, 0.2, 0.1, 0.3]), groups, measured)
    for group, divergence in zip(groups, measured, strict=True):
        assert parts[list(group.members)].sum() == pytest.approx(divergence, rel=1e-3)


def test_a_negative_divergence_is_noise_and_no_gain() -> None:
    parts = share_out(np.array([0.2, 0.2]), [Group("role a", (0, 1))], [-1e-9])
    assert (parts > 0).all()


@settings(deadline=None)
@given(drawn=st.lists(WEIGHT, min_size=1, max_size=5), part=st.floats(0.01, 1))
def test_what_reaches_a_divergence_is_no_larger_than_what_a_budget_of_its_bytes_gives(
    drawn: list[tuple[int, float, float, float]], part: float
) -> None:
    sizes, costs = weights(drawn)
    limit = part * sum(cost[2] for cost in costs)
    chosen = reach(sizes, costs, limit)
    least = sum(cost[8] for cost in costs)
    assert (chosen is None) == (least > limit)
    if chosen is not None:
        assert sum(cost[bits] for cost, bits in zip(costs, chosen, strict=True)) <= limit
        total = sum(size[bits] for size, bits in zip(sizes, chosen, strict=True))
        same = choose(sizes, costs, total)
        assert same is not None
        assert sum(cost[bits] for cost, bits in zip(costs, same, strict=True)) <= limit * (1 + 1e-9)


def weighed(count: int) -> list[Weighed]:
    sizes = {Form(4, 32): 4, Form(8, 32): 8, FLOAT: 32}
    place = Place(0, "v", "nothing")
    return [Weighed(f"w{n}", place, (), {}, sizes, Form(4, 32), None) for n in range(count)]


@pytest.mark.parametrize("truth", [0.3, 0.5, 1.0, 1.6])
def test_a_divergence_is_kept_as_measured_whatever_the_parts_predict(truth: float) -> None:
    costs: list[Any] = [{Form(4, 32): 0.1, Form(8, 32): 0.001, FLOAT: 0.0} for _ in range(10)]

    def measured(plan: Plan) -> float:
        return truth * plan.divergence

    plan = within_divergence(weighed(10), costs, 0.5, measured)
    assert plan.divergence <= 0.5
    # One weight more with 4 bits would be beyond the limit, or all have them.
    assert plan.divergence > 0.5 * 0.97 - truth * 0.1 or truth < 0.5


def test_a_divergence_that_nothing_reaches() -> None:
    costs: list[Any] = [{Form(4, 32): 0.1, Form(8, 32): 0.01, FLOAT: 0.009}]
    with pytest.raises(OptionError, match=r"a divergence of 0.001 was not reached, only inf"):
        within_divergence(weighed(1), costs, 0.001, lambda _: 1.0)


@pytest.mark.parametrize(
    ("budget", "size", "expected"),
    [("4.5 bpw", None, 562), ("8bpw", None, 1000), (None, "180 MB", 179_999_000), (None, "1.5KiB", 536)],
)
def test_goals_in_bytes(budget: str | None, size: str | None, expected: int) -> None:
    goal = parse_goal(budget, size, None)
    assert goal is not None
    assert goal.weight_bytes(1000, 1000) == expected


@pytest.mark.parametrize("text", ["", "5", "5 bits", "-3 bpw", "many bpw"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(OptionError, match="is no bits per weight"):
        parse_goal(text, None, None)


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (("180 MB", None, None), "say `size: 180 MB`"),
        ((None, "180", None), "is no size"),
        ((None, None, 0.0), "is not above zero"),
        (("5 bpw", None, 0.1), "`budget` and `kl` are two goals"),
    ],
)
def test_goals_that_are_refused(goal: tuple[str | None, str | None, float | None], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_goal(*goal)
