"""The targets' data: each rule has its source, each table a layout that is not known to be wrong."""

from __future__ import annotations

from itertools import product

import pytest

from onnx_tailor.passes.reshape_dim import Layout
from onnx_tailor.targets import TARGETS, TableForm, Target

FORMS = [
    TableForm(bits, zero_points, whole)
    for bits, zero_points, whole in product((2, 4, 8), (True, False), (True, False))
    if whole or bits < 8
]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_table_has_a_layout_that_is_right(target: Target) -> None:
    for form in FORMS:
        assert target.objection(target.layout(form), form) is None


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_rule_names_known_layouts_and_its_source(target: Target) -> None:
    known = set(Layout.__args__) - {"auto"}
    assert set(target.layouts) <= known
    for case in target.wrong:
        assert set(case.layouts) <= known
        assert case.why
        assert case.source
    assert all(kernel.source for kernel in target.kernels)
    assert (target.binding_bytes is None) == (not target.binding_source)


def test_portable_takes_what_no_other_target_refuses() -> None:
    portable = TARGETS["portable"]
    for form in FORMS:
        layout = portable.layout(form)
        assert all(target.objection(layout, form) is None for target in TARGETS.values())
    assert portable.binding_bytes == 128 << 20
    assert {kernel.since.get(2) for kernel in portable.kernels_of("MatMulNBits")} > {None}


@pytest.mark.parametrize(
    ("target", "form", "layout"),
    [
        ("cpu", TableForm(4, zero_points=True, whole_points=True), "alias"),
        ("cpu", TableForm(4, zero_points=True, whole_points=False), "plain"),
        ("cpu", TableForm(8, zero_points=True, whole_points=True), "alias"),
        ("cuda", TableForm(4, zero_points=False, whole_points=True), "shared"),
        ("cuda", TableForm(4, zero_points=True, whole_points=True), "correction"),
        ("cuda", TableForm(8, zero_points=True, whole_points=True), "shared"),
        ("webgpu", TableForm(4, zero_points=True, whole_points=False), "correction"),
        ("wasm", TableForm(8, zero_points=False, whole_points=True), "plain"),
        ("portable", TableForm(4, zero_points=False, whole_points=True), "plain"),
    ],
)
def test_the_choice(target: str, form: TableForm, layout: str) -> None:
    assert TARGETS[target].layout(form) == layout


def test_packed_zero_points_that_end_inside_a_byte_are_wrong_in_two_dimensions() -> None:
    ragged, whole = (
        TableForm(2, zero_points=True, whole_points=False),
        TableForm(2, zero_points=True, whole_points=True),
    )
    for name in ("cpu", "cuda"):
        assert TARGETS[name].objection("alias", ragged) is not None
        assert TARGETS[name].objection("alias", whole) is None
