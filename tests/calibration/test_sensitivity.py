from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_tailor.calibration.bit_budget import parse_budget
from onnx_tailor.calibration.sensitivity import Group, choose, share_out
from onnx_tailor.errors import OptionError

WEIGHT = st.tuples(st.integers(1, 50), st.floats(0.01, 10), st.floats(0.05, 0.9), st.floats(0.05, 0.9))


def weights(drawn: list[tuple[int, float, float, float]]) -> tuple[list[Any], list[Any]]:
    sizes = [{2: 2 * n, 4: 4 * n, 8: 8 * n} for n, *_ in drawn]
    costs = [{2: cost, 4: cost * first, 8: cost * first * second} for _, cost, first, second in drawn]
    return sizes, costs


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4.5 bpw", 562), ("8bpw", 1000), ("180 MB", 180_000_000), ("1.5KiB", 1536), ("2 GB", 2_000_000_000)],
)
def test_budgets(text: str, expected: int) -> None:
    assert parse_budget(text, 1000) == expected


@pytest.mark.parametrize("text", ["", "5", "5 bits", "-3 MB", "many MB"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(OptionError, match="neither bits per weight"):
        parse_budget(text, 1000)
