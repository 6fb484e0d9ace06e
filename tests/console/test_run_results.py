"""What `run` shows and writes: the plan, the receipt, and the check before the folder gets its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
RECIPE = """recipe: 1
passes:
  - tie-embeddings
  - quantize:
      bits: 4
      nodes:
        role:down: {bits: 8, layers: "0,3"}
        role:o: skip
"""


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(each) for each in arguments])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def _quantize(report: dict[str, Any]) -> dict[str, Any]:
    (found,) = [done for done in report["passes"] if done["name"] == "quantize"]
    return found  # type: ignore[no-any-return]


def test_a_dry_run_names_for_every_weight_the_line_that_decided(recipe: Path, tmp_path: Path) -> None:
    result = call("run", recipe, EXAMPLE / "model.onnx", "--dry-run", "--json", "--set", "quantize.nodes.role:v=8")
    plan = _quantize(json.loads(result.stdout))
    told = [{**each["details"], "after": each["bytes_after"]} for each in plan["changes"]]
    by = {(each["role"], each["layer"]): (each["bits"], each["recipe_line"], each["rule"][-1]) for each in told}
    assert len(by) == 4 * 6 + 1  # q, k, v, gate, up, down of four layers, and the head; o is skipped
    assert by["down", 0] == by["down", 3] == (8, "mine.yaml:7", "role:down")
    assert by["down", 1] == by["q", 0] == by["lm_head", None] == (4, "mine.yaml:5", "bits")
    assert by["v", 2] == (8, "--set:1", "role:v")
    assert all(0 < each["after"] < each["bytes"] for each in told)
    assert {(s["details"]["role"], s["details"]["recipe_line"]) for s in plan["skips"]} == {("o", "mine.yaml:8")}
    assert [s["details"]["layer"] for s in plan["skips"]] == [0, 1, 2, 3]
    assert all(s["reason"] and s["details"]["bytes"] == 2 * 192 * 192 for s in plan["skips"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_the_plan_fits_a_terminal_and_is_plain_when_piped(recipe: Path) -> None:
    shown = call("run", recipe, EXAMPLE / "model.onnx", "--dry-run").stdout
    lines = shown.splitlines()
    assert all(len(line) <= 80 for line in lines if "left alone" not in line and "places" not in line)
    assert "\x1b" not in shown
    (row,) = [line for line in lines if line.split()[:3] == ["down", "0,", "3"]]
    assert row.split() == ["down", "0,", "3", "192x512", "8", "393", "kB", "215", "kB", "role:down,", "line", "7"]
    (skipped,) = [line for line in lines if line.split()[:2] == ["o", "0-3"]]
    assert skipped.split()[3] == "float16"


def test_the_receipt_has_each_weights_own_error(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("run", recipe, EXAMPLE / "model.onnx", "-o", out).exit_code == 0
    report = json.loads((out / "tailor-report.json").read_text(encoding="utf-8"))
    changes = _quantize(report)["changes"]
    (down,) = [c["details"] for c in changes if (c["details"]["role"], c["details"]["layer"]) == ("down", 3)]
    before = _weights(EXAMPLE / "model.onnx")
    after = _weights(out / "model.onnx")
    name = down["weight"]
    codes, scales = after[f"{name}_q8"].astype(np.float64), after[f"{name}_scales"].astype(np.float64)
    points = after[f"{name}_zero_points"].reshape(scales.shape).astype(np.float64)
    values = ((codes - points[..., None]) * scales[..., None]).reshape(192, 512)
    weight = before[name].astype(np.float64)
    error = np.linalg.norm(values - (weight if weight.shape == values.shape else weight.T)) / np.linalg.norm(weight)
    assert down["relative_error"] == pytest.approx(error, rel=1e-4)
    assert down["signal_to_noise_db"] == pytest.approx(-20 * np.log10(error), abs=1e-2)
    assert report["recipe_text"] == RECIPE

    inspected = json.loads(call("inspect", out, "--json").stdout)["files"][0]
    (receipt,) = inspected["receipts"]
    assert (receipt["recipe"], receipt["bits_per_weight"]) == ("mine", report["after"]["bits_per_weight"])
    (quantize,) = [done for done in receipt["passes"] if done["name"] == "quantize"]
    worst = max(changes, key=lambda change: change["details"]["relative_error"])["details"]
    assert quantize["worst"] == {"weight": worst["weight"], "relative_error": worst["relative_error"]}
    assert (quantize["changes"], quantize["skips"]) == (25, 4)
    assert "made by onnx-tailor" in call("inspect", out).stdout


def test_a_second_run_adds_its_receipt(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert call("run", "tie", EXAMPLE / "model.onnx", "-o", first).exit_code == 0
    assert call("run", "rtn", first, "-o", second).exit_code == 0
    (file,) = json.loads(call("inspect", second, "--json").stdout)["files"]
    assert [receipt["recipe"] for receipt in file["receipts"]] == ["tie", "rtn"]


def test_run_measures_before_it_keeps(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("run", recipe, EXAMPLE / "model.onnx", "-o", out, "--verify", "--text", "bundled", "--windows", 1)
    result = call(*common, "--limit", "kl=1e-9")
    assert result.exit_code == 1
    assert "KL divergence, mean" in result.stdout
    assert "error: kl: the mean KL divergence in nats is" in result.stderr
    assert "nothing was written" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]

    result = call(*common, "--limit", "kl=1", "--json")
    assert result.exit_code == 0
    (verified,) = json.loads(result.stdout)["verified"]
    again = call("verify", EXAMPLE, out, "--text", "bundled", "--windows", 1, "--json")
    measured = json.loads(again.stdout)
    assert 0 < verified["kl_mean"] < 1
    assert {key: verified[key] for key in ("kl_mean", "kl_max", "top1_agreement", "worst")} == {
        key: measured[key] for key in ("kl_mean", "kl_max", "top1_agreement", "worst")
    }


@pytest.mark.parametrize(
    "options", [("--limit", "kl=1"), ("--text", "bundled"), ("--verify", "--dry-run"), ("--verify", "--limit", "x=1")]
)
def test_options_that_do_not_go_together(options: tuple[str, ...], recipe: Path, tmp_path: Path) -> None:
    result = call("run", recipe, EXAMPLE / "model.onnx", "-o", tmp_path / "out", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (tmp_path / "out").exists()


def _weights(path: Path) -> dict[str, np.ndarray]:
    model = onnx.load(path)
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def test_windows_count_for_random_tokens_as_well() -> None:
    found = json.loads(call("verify", EXAMPLE, EXAMPLE, "--window", 8, "--windows", 2, "--json").stdout)
    assert (found["tokens"], found["random"]) == (16, True)
    assert (found["kl_mean"], found["kl_max"], found["worst"]) == (0.0, 0.0, [])
