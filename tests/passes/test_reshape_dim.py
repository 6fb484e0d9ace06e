"""The pass as a recipe runs it: every target, before and after, and a second run that changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quantized_models import Case, build, feeds, run

from onnx_tailor import pipeline, recipe
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import TARGETS

CASES = (Case(4, k=96), Case(4, k=64), Case(4, symmetric=True, k=80), Case(8, k=80), Case(2, k=80))


def tailor(model: Path, out: Path, target: str, options: str = "") -> tuple[Path, list[Change | Skip]]:
    text = out.with_suffix(".yaml")
    text.write_text(f"recipe: 1\npasses:\n  - reshape-dim: {{{options}}}\n")
    report = pipeline.run(recipe.load(str(text)), model, out, target=target)
    (done,) = report.passes
    return out / model.name, [*done.changes, *done.skips]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_rows_and_nothing_to_do_the_second_time(tmp_path: Path, target: str, case: Case) -> None:
    model = build(tmp_path, case)
    path, (change,) = tailor(model, tmp_path / "out", target)
    assert isinstance(change, Change)
    before, after = run(model, feeds(case)), run(path, feeds(case))
    if change.details["layout_after"] == "correction":
        assert np.allclose(before[0], after[0], rtol=0, atol=1e-6)
    else:
        assert np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    again, (skip,) = tailor(path, tmp_path / "again", target)
    assert isinstance(skip, Skip)
    assert f"its layout is {change.details['layout_after']}" in skip.reason
    assert again.read_bytes() == path.read_bytes()


def test_attributes_alone_are_a_change(tmp_path: Path) -> None:
    case = Case(8, attributes=False)
    path, (change,) = tailor(build(tmp_path, case), tmp_path / "out", "cpu", "layout: reshape")
    assert (change.details["layout_before"], change.details["layout_after"]) == ("reshape", "reshape")
    import onnx

    (node,) = (n for n in onnx.load(path).graph.node if n.op_type == "GatherBlockQuantized")
    assert {a.name for a in node.attribute} == {"bits", "block_size", "gather_axis", "quantize_axis"}


def test_a_layout_that_the_target_computes_wrongly_is_replaced_and_told(tmp_path: Path) -> None:
    path, (change,) = tailor(build(tmp_path, Case(4, k=96)), tmp_path / "out", "cuda", "layout: alias")
    assert isinstance(change, Change)
    assert change.details["layout_after"] == "correction"
    said = "instead of alias, which is wrong on cuda: the kernel reads packed zero points"
    assert said in change.what
    again, (skip,) = tailor(path, tmp_path / "again", "cuda", "layout: alias")
    assert isinstance(skip, Skip)
    assert said in skip.reason
    assert again.read_bytes() == path.read_bytes()


def test_names_stay(tmp_path: Path) -> None:
    import onnx

    path, _ = tailor(build(tmp_path, Case(4)), tmp_path / "out", "portable")
    names = [node.name for node in onnx.load(path).graph.node]
    assert "/embed" in names
    assert all(name.startswith("/embed/") for name in names if name not in {"/embed", "/lm_head"})


def test_a_model_without_quantized_tables_is_told(tmp_path: Path) -> None:
    import onnx

    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1])],
        [onnx.helper.make_tensor_value_info("y", 1, [1])],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    _, (skip,) = tailor(tmp_path / "m.onnx", tmp_path / "out", "cpu")
    assert skip.reason == "the model gathers rows of no quantized table"
