"""`bits: auto` of quantize."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from language_model import Model

from onnx_tailor import pipeline, recipe
from onnx_tailor.calibration.calibrate import calibrate
from onnx_tailor.errors import UsageError
from onnx_tailor.verify import compare
from onnx_tailor.verify.tokens import random_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_tailor.report import Report

SHAPE = Model(columns=64, inner=96, vocabulary=300)
SPEC = replace(SHAPE, weights={"layers.1.mlp.up_proj": 30 * SHAPE.values()["layers.1.mlp.up_proj"]})
"""One weight drowns the others, so that its error is the model's."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = SPEC.save(tmp_path_factory.mktemp("model") / "model.onnx")
    calibrate(path, path.with_name("c.npz"), random_tokens(300, windows=16), hessians=True)
    return path


def tailor(source: Path, out: Path, options: str) -> Report:
    file = source.with_name(f"{out.name}.yaml")
    file.write_text(f"recipe: 1\npasses: [tie-embeddings, quantize: {{{options}}}]\n")
    return pipeline.run(recipe.load(str(file)), source, out)


def bits(report: Report) -> dict[str, int]:
    found = [change for each in report.passes if each.name == "quantize" for change in each.changes]
    return {change.where: change.details["bits"] for change in found}


@pytest.mark.parametrize("method", ["gptq, calibration: c.npz", "imatrix, calibration: c.npz", "k_quant", "rtn"])
def test_within_the_budget_and_where_it_counts(source: Path, tmp_path: Path, method: str) -> None:
    report = tailor(source, tmp_path / "out", f"method: {method}, bits: auto, budget: 6.5 bpw")
    assert 6 < report.after.bits_per_weight <= 6.5
    found = bits(report)
    assert len(found) == 7
    assert found["/model/layers.1/mlp/up_proj/MatMul"] == 8
    assert len(set(found.values())) > 1


def test_a_step_goes_to_the_layer_that_costs_more(source: Path, tmp_path: Path) -> None:
    """The budget is for one projection with 8 bits."""
    uniform = tailor(source, tmp_path / "uniform", "method: k_quant, bits: 4")
    budget = (uniform.after.weight_bytes + 2200) / 1000
    found = bits(tailor(source, tmp_path / "auto", f"method: k_quant, bits: auto, budget: {budget} KB"))
    assert [name for name, number in found.items() if number != 4] == ["/model/layers.1/self_attn/v_proj/MatMul"]
    tokens = random_tokens(300, seed=5)
    first, second = (compare(source, tmp_path / name / "model.onnx", tokens) for name in ("uniform", "auto"))
    assert (second.kl_mean or 0) < 0.95 * (first.kl_mean or 0)


def test_the_plan_is_a_recipe_that_gives_the_same_file(source: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    options = f'method: gptq, calibration: c.npz, bits: auto, budget: 6 bpw, plan: "{plan}"'
    options += ', nodes: {"role:v": {bits: 2, block_size: 16}, "role:down": {symmetric: true}}'
    first = tailor(source, tmp_path / "first", options)
    second = pipeline.run(recipe.load(str(plan)), source, tmp_path / "second")
    assert bits(first) == bits(second)
    assert {found for name, found in bits(first).items() if "v_proj" in name} == {2}
    data = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("first", "second")]
    assert data[0] == data[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bits: auto", r"g\.yaml:2:\d+: quantize: `bits: auto` and a `budget`, .* need each other"),
        ("budget: 5 bpw", "need each other"),
        ("bits: auto, budget: 5 apples", r"g\.yaml:2:\d+: quantize: budget '5 apples' is neither"),
        ("bits: auto, budget: 1 bpw", r"the budget leaves [\d,]+ bytes .*, but with 2 bits they take [\d,]+"),
        ('bits: auto, budget: 5 bpw, nodes: {"*": 4}', "no weight is left"),
    ],
)
def test_mistakes(source: Path, tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tailor(source, tmp_path / "g", options)
    assert not (tmp_path / "g").exists()


def test_the_model_that_is_measured_is_not_the_one_that_is_written(source: Path, tmp_path: Path) -> None:
    """What a measurement rewrites must leave no trace: the same file comes out of explicit bits."""
    tailor(source, tmp_path / "auto", "bits: auto, budget: 100 bpw")
    tailor(source, tmp_path / "eight", "bits: 8")
    data = [np.fromfile(tmp_path / name / "model.onnx.data", np.uint8) for name in ("auto", "eight")]
    assert np.array_equal(*data)
