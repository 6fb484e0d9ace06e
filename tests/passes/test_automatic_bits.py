"""`bits: auto` of quantize."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from language_model import Model

from onnx_tailor import pipeline, recipe
from onnx_tailor.calibration.calibrate import calibrate
from onnx_tailor.errors import UsageError
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.passes import Pass, Quantize
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import Target
from onnx_tailor.verify import compare
from onnx_tailor.verify.tokens import random_tokens

if TYPE_CHECKING:
    from onnx_tailor.report import Report

EXPORTS = Path(__file__).parents[1] / "fixtures" / "exports"
SHAPE = Model(columns=64, inner=96, vocabulary=300)
_SIZES = {"layers.0.mlp.up_proj": 0.3, "layers.1.mlp.up_proj": 30}
SPEC = replace(SHAPE, weights={name: size * SHAPE.values()[name] for name, size in _SIZES.items()})
"""One weight drowns the others, so that its error is the model's."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = SPEC.save(tmp_path_factory.mktemp("model") / "model.onnx")
    calibrate(path, path.with_name("c.npz"), random_tokens(300, windows=16), hessians=True)
    return path


def tailor(source: Path, out: Path, options: str, target: str = "cpu") -> Report:
    file = source.with_name(f"{out.name}.yaml")
    file.write_text(f"recipe: 1\npasses: [tie-embeddings, quantize: {{{options}}}]\n")
    return pipeline.run(recipe.load(str(file)), source, out, target=target)


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
    tailor(source, tmp_path / "uniform", f"method: {method}, bits: 4")
    tokens = random_tokens(300, seed=5)
    uniform, chosen = (compare(source, tmp_path / name / "model.onnx", tokens) for name in ("uniform", "out"))
    assert (chosen.kl_mean or 0) < 0.9 * (uniform.kl_mean or 0)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("torchscript-gpt2-fp16", "unpack-matmul", "reshape-dim: {layout: alias}"),
        ("torchscript-llama-fp16", 'quantize: {bits: float, nodes: {"role:lm_head": 8}}', "pack-matmul"),
    ],
)
def test_the_plan_has_the_other_passes_of_the_recipe(tmp_path: Path, name: str, before: str, after: str) -> None:
    """Parts of packed projections, and weights that an earlier step quantized, are there for it as well."""
    source, plan, file = EXPORTS / name / "model.onnx", tmp_path / "plan.yaml", tmp_path / "r.yaml"
    chosen = f'quantize: {{bits: auto, budget: 12 bpw, plan: "{plan}"}}'
    file.write_text(f"recipe: 1\ntarget: webgpu\npasses: [{before}, {chosen}, {after}]\n")
    first = pipeline.run(recipe.load(str(file)), source, tmp_path / "first")
    second = pipeline.run(recipe.load(str(plan)), source, tmp_path / "second")
    assert first.after.weight_bytes == second.after.weight_bytes
    data = [(tmp_path / folder / first.files[1]).read_bytes() for folder in ("first", "second")]
    assert data[0] == data[1]


@dataclass(frozen=True, kw_only=True)
class OfPython(Pass):
    """A pass with an option that no recipe can write."""

    name: ClassVar[str] = "of-python"
    key: Callable[[str], int]

    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        yield Skip(where=model.path.name, reason=f"{self.key(target.name)} letters")


def test_a_pass_that_no_plan_can_hold_is_told_before_measuring(source: Path, tmp_path: Path) -> None:
    passes: list[Pass] = [OfPython(key=len), Quantize(bits="auto", budget="6 bpw", plan=str(tmp_path / "p.yaml"))]
    with pytest.raises(UsageError, match="no plan can hold the pass of-python"):
        pipeline.run(recipe.of_passes(passes), source, tmp_path / "out")


def test_a_goal_from_the_command_line_takes_the_recipes_place(source: Path, tmp_path: Path) -> None:
    chosen = recipe.load("best", settings=["quantize.size=200 kB"])
    report = pipeline.run(chosen, source, tmp_path / "out")
    assert sum(file.stat().st_size for file in (tmp_path / "out").glob("model.onnx*")) <= 200_000
    assert report.after.bits_per_weight > 5
    with pytest.raises(UsageError, match="`budget` and `kl` are two goals"):
        recipe.load("best", settings=["quantize.budget=5 bpw", "quantize.kl=0.1"])


def test_an_entry_without_bits_that_is_named_like_a_weight(source: Path, tmp_path: Path) -> None:
    """It says how the weight is stored, and leaves the bits to the choice."""
    name, plan = "/model/layers.1/mlp/up_proj/MatMul", tmp_path / "plan.yaml"
    entry = f'nodes: {{"{name}": {{symmetric: true}}}}'
    report = tailor(source, tmp_path / "out", f'bits: auto, budget: 6.5 bpw, {entry}, plan: "{plan}"')
    (change,) = [each for each in report.passes[-1].changes if each.where == name]
    assert (change.details["bits"], change.details["symmetric"]) == (8, True)
    pipeline.run(recipe.load(str(plan)), source, tmp_path / "again")
    data = [(tmp_path / folder / "model.onnx.data").read_bytes() for folder in ("out", "again")]
    assert data[0] == data[1]


@pytest.mark.parametrize("symmetric", ["false", "true"])
@pytest.mark.parametrize("columns", [64, 96, 80])
def test_what_has_no_standard_form_is_counted_in_float(tmp_path: Path, columns: int, symmetric: str) -> None:
    """In standard operators some sizes have no form, and a table has zero points whatever is asked for."""
    source = replace(SHAPE, columns=columns, vocabulary=600).save(tmp_path / "model.onnx")
    whole = tailor(source, tmp_path / "whole", f"format: qdq, bits: 4, symmetric: {symmetric}")
    budget = max(6.5, whole.after.bits_per_weight + 0.7)
    options = f"format: qdq, symmetric: {symmetric}, bits: auto, budget: {budget} bpw"
    report = tailor(source, tmp_path / "out", options)
    assert budget - 1.5 < report.after.bits_per_weight <= budget


def test_a_step_goes_to_the_layer_that_costs_more(source: Path, tmp_path: Path) -> None:
    """The budget is for one projection with 8 bits."""
    uniform = tailor(source, tmp_path / "uniform", "method: k_quant, bits: 4")
    budget = 8 * (uniform.after.weight_bytes + 2200) / uniform.after.parameters
    found = bits(tailor(source, tmp_path / "auto", f"method: k_quant, bits: auto, budget: {budget} bpw"))
    assert [name for name, number in found.items() if number != 4] == ["/model/layers.1/self_attn/v_proj/MatMul"]
    tokens = random_tokens(300, seed=5)
    first, second = (compare(source, tmp_path / name / "model.onnx", tokens) for name in ("uniform", "auto"))
    assert (second.kl_mean or 0) < 0.95 * (first.kl_mean or 0)


def test_the_plan_is_a_recipe_that_gives_the_same_file(source: Path, tmp_path: Path) -> None:
    """What a measurement rewrites leaves no trace in the model, either."""
    plan = tmp_path / "plan.yaml"
    plan.write_text("precious")
    with pytest.raises(UsageError, match=r"plan .*plan\.yaml: exists already and is no plan"):
        tailor(source, tmp_path / "none", f'bits: auto, budget: 6 bpw, plan: "{plan}"')
    with pytest.raises(UsageError, match=r"plan .*: there is no folder"):
        tailor(source, tmp_path / "none", f'bits: auto, budget: 6 bpw, plan: "{tmp_path}/nowhere/p.yaml"')
    assert plan.read_text() == "precious"
    plan.unlink()
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
        ("bits: auto", r"g\.yaml:2:\d+: quantize: `bits: auto` and a goal .* need each other"),
        ("budget: 5 bpw", "need each other"),
        ("bits: auto, budget: 5 apples", r"g\.yaml:2:\d+: quantize: budget '5 apples' is no bits per weight"),
        ("bits: auto, budget: 1 bpw", r"the goal leaves [\d,]+ bytes .*, but with the fewest bits they take [\d,]+"),
        ("method: best, bits: 8, budget: 5 bpw", "`bits: 8` and a goal exclude each other"),
        ("block_size: auto", "`block_size: auto` is for `bits: auto`"),
        ('bits: auto, budget: 5 bpw, nodes: {"*": 4}', "no weight is left"),
    ],
)
def test_mistakes(source: Path, tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tailor(source, tmp_path / "g", options)
    assert not (tmp_path / "g").exists()


def test_best_is_one_line(source: Path, tmp_path: Path) -> None:
    """gptq with float16 scales, bits and blocks by measurement; its plan gives the same file."""
    plan = tmp_path / "plan.yaml"
    options = f'method: best, budget: 4.9 bpw, calibration: c.npz, plan: "{plan}"'
    first = tailor(source, tmp_path / "first", options)
    assert 4.5 < first.after.bits_per_weight <= 4.9
    found = [change.details for each in first.passes if each.name == "quantize" for change in each.changes]
    assert {each["method"] for each in found} == {"gptq"}
    assert len({(each["bits"], each["block_size"]) for each in found}) > 1
    pipeline.run(recipe.load(str(plan)), source, tmp_path / "second")
    data = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("first", "second")]
    assert data[0] == data[1]
    assert "scales: float16" in plan.read_text()


@pytest.mark.parametrize(
    ("options", "target"), [("", "webgpu"), ("", "portable"), (", block_size: 32", "cpu"), (", format: qdq", "cpu")]
)
def test_best_keeps_blocks_of_32_where_others_may_be_slower_or_one_size_is_asked_for(
    source: Path, tmp_path: Path, options: str, target: str
) -> None:
    report = tailor(source, tmp_path / "out", f"method: best, budget: 5 bpw, calibration: c.npz{options}", target)
    changes = [change for each in report.passes if each.name == "quantize" for change in each.changes]
    found = [change.details for change in changes if change.where != "model.onnx"]
    assert {each["block_size"] for each in found} == {32}
    assert len({each["bits"] for each in found}) > 1


def test_a_weight_whose_bits_are_given_has_blocks_of_32_where_others_are_chosen(source: Path, tmp_path: Path) -> None:
    options = 'method: k_quant, bits: auto, block_size: auto, budget: 5 bpw, nodes: {"role:v": 8}'
    report = tailor(source, tmp_path / "out", options)
    found = [change.details for each in report.passes if each.name == "quantize" for change in each.changes]
    assert {(each["bits"], each["block_size"]) for each in found if each["role"] == "v"} == {(8, 32)}
    assert len({each["block_size"] for each in found}) > 1


def test_best_without_a_goal_has_four_bits(source: Path, tmp_path: Path) -> None:
    tailor(source, tmp_path / "best", "method: best, calibration: c.npz")
    tailor(source, tmp_path / "same", "method: gptq, scales: float16, calibration: c.npz")
    assert (tmp_path / "best" / "model.onnx.data").read_bytes() == (tmp_path / "same" / "model.onnx.data").read_bytes()


def test_a_size_is_that_of_the_files(source: Path, tmp_path: Path) -> None:
    report = tailor(source, tmp_path / "out", "method: best, size: 115 KB, calibration: c.npz")
    written = sum((tmp_path / "out" / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert 30_000 < written <= 115_000
    assert report.after.file_bytes == written


def test_a_divergence_is_measured_with_the_method_itself(source: Path, tmp_path: Path) -> None:
    tailor(source, tmp_path / "out", "method: best, kl: 2e-5, calibration: c.npz")
    tailor(source, tmp_path / "loose", "method: best, kl: 2e-3, calibration: c.npz")
    sizes = [(tmp_path / name / "model.onnx.data").stat().st_size for name in ("out", "loose")]
    assert sizes[0] > sizes[1]
    tokens = random_tokens(300, windows=4, length=64, seed=1)
    found = [compare(source, tmp_path / name / "model.onnx", tokens).kl_mean or 0.0 for name in ("out", "loose")]
    assert 0 <= found[0] <= 2e-5 < found[1] <= 2e-3, found


def test_a_dry_run_with_fixed_bits_does_not_calibrate(source: Path) -> None:
    file = source.with_name("dry.yaml")
    file.write_text("recipe: 1\npasses: [quantize: {method: gptq}]\n")
    report = pipeline.run(recipe.load(str(file)), source, None, dry_run=True)
    whats = [change.what for each in report.passes for change in each.changes]
    assert all("a dry run does not calibrate" in what for what in whats)
    assert len(whats) == 7
