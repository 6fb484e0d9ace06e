"""The recipe that `--fix` writes mends; what `run` writes has no problem; the command keeps its contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quantized_models import Case, build
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app
from onnx_tailor.lint.fix import recipe
from onnx_tailor.lint.rules import lint
from onnx_tailor.targets import TARGETS

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model.onnx"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def mended(model: Path, target: str, folder: Path) -> Path:
    fix = folder / "fix.yaml"
    result = call("lint", model, "--target", target, "--fix", fix)
    assert result.exit_code == 1, result.output
    done = call("run", fix, model, "-o", folder / "out")
    assert done.exit_code == 0, done.output
    return folder / "out" / model.name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "case",
    [Case(4, k=96), Case(8, attributes=False), Case(4, v=512, layout="alias", own_copy=True), Case(8, v=512)],
    ids=str,
)
def test_fix_mends(tmp_path: Path, target: str, case: Case) -> None:
    model = build(tmp_path, case)
    if not lint(model, target).problems:
        pytest.skip("has no problem there")
    path = mended(model, target, tmp_path)
    assert lint(path, target).problems == ()


def test_fix_mends_the_builders_export(tmp_path: Path) -> None:
    path = mended(FIXTURES / "genai-int4-asymmetric" / "model.onnx", "portable", tmp_path)
    assert lint(path, "portable").problems == ()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["rtn", "rtn-8bit", "tie"])
def test_what_run_writes_has_no_problem(tmp_path: Path, target: str, name: str) -> None:
    done = call("run", name, EXAMPLE, "-o", tmp_path / "out", "--target", target)
    assert done.exit_code == 0, done.output
    found = lint(tmp_path / "out" / "model.onnx", target)
    assert found.problems == (), [finding.what for finding in found.problems]


def test_the_command(tmp_path: Path) -> None:
    model = build(tmp_path, Case(4, k=96))
    result = call("lint", model, "--target", "cuda", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["target"], found["problems"], found["recipe"]) == ("cuda", 1, None)
    (problem,) = (f for f in found["findings"] if f["level"] == "problem")
    assert (problem["rule"], problem["where"], problem["mend"]) == ("table-layout", "/embed", "reshape-dim")

    shown = call("lint", model, "--target", "cuda")
    assert "problem table-layout: /embed" in shown.stdout
    assert "recipe: - reshape-dim" in shown.stdout
    assert "1 problem, 1 note for the target cuda" in shown.stdout

    fix = tmp_path / "fix.yaml"
    assert call("lint", model, "--target", "cuda", "--fix", fix).exit_code == 1
    assert fix.read_text().splitlines() == [
        "# Mends what `onnx-tailor lint --target cuda` found in model.onnx.",
        "recipe: 1",
        "target: cuda",
        "passes:",
        "  - reshape-dim  # table-layout (/embed)",
    ]
    again = call("lint", model, "--target", "cuda", "--fix", fix)
    assert again.exit_code == 2
    assert again.stderr == f"error: {fix}: exists already; give --fix a new file\n"


def test_a_clean_file_exits_0_and_writes_no_recipe(tmp_path: Path) -> None:
    model = build(tmp_path, Case(4, layout="alias"))
    fix = tmp_path / "fix.yaml"
    result = call("lint", model, "--target", "cpu", "--fix", fix)
    assert result.exit_code == 0, result.output
    assert not fix.exists()
    assert "no problems" in result.stdout


def test_usage(tmp_path: Path) -> None:
    assert call("lint", tmp_path / "none.onnx", "--target", "cpu").exit_code == 1
    assert call("lint", tmp_path / "none.onnx", "--target", "gpu").exit_code == 2
    assert call("lint", tmp_path / "none.onnx").exit_code == 2


def test_mends_stand_in_the_order_of_a_recipe(tmp_path: Path) -> None:
    text = recipe(lint(build(tmp_path, Case(8, v=512, layout="alias", own_copy=True)), "cpu"))
    assert text is not None
    names = [line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith("  - ")]
    assert names == ["tie-embeddings", "accuracy-level", "reshape-dim"]
