"""The command init: the recipe that it writes, as text, and that it does what its comments say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from language_model import Model, ids, run
from typer.testing import CliRunner

from onnx_tailor import pipeline, recipe
from onnx_tailor.cli import app
from onnx_tailor.recommend import recommend
from onnx_tailor.targets import TARGETS

if TYPE_CHECKING:
    from pathlib import Path


def lines_about(text: str, word: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if word in line]


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_it_runs_and_keeps_what_it_forecasts(tmp_path: Path, target: str) -> None:
    spec = Model(layers=2, vocabulary=300)
    source = spec.save(tmp_path / "model.onnx")
    text = recommend(source, target)
    (tmp_path / "r.yaml").write_text(text)
    report = pipeline.run(recipe.load(str(tmp_path / "r.yaml")), source, tmp_path / "out")
    assert report.target == target
    assert f"{report.after.bits_per_weight:.2f} bits per weight" in text
    assert ("accuracy_level: 4" in text) == (target == "cpu")
    assert run(tmp_path / "out" / "model.onnx", {"input_ids": ids(spec)})["logits"].shape == (2, 5, 300)


def test_it_says_what_is_tied_and_how_that_is_known(tmp_path: Path) -> None:
    table = Model().values()["table"]
    cases: list[tuple[Model, str, str]] = [
        (Model(), "- tie-embeddings", "the table and the head read one weight (one initializer, behind Transpose)"),
        (Model(head="separate"), "- tie-embeddings", "hold the same values (two copies, all 3360 values compared)"),
        (
            Model(head="separate", weights={"lm_head": -table}),
            "# - tie-embeddings",
            "are not the same weight (3360 of 3360 values differ",
        ),
    ]
    for number, (spec, line, why) in enumerate(cases):
        text = recommend(spec.save(tmp_path / f"{number}.onnx"))
        assert lines_about(text, "- tie-embeddings") == [line]
        assert why in text


def test_projections_are_counted_by_role_and_type(tmp_path: Path) -> None:
    text = recommend(Model(dtype="bfloat16").save(tmp_path / "model.onnx"))
    assert "7 projections in layers 0-1: 2 v, 2 up, 2 down, 1 lm_head." in text
    assert "bfloat16: cpu multiplies float16 or float32 only; export it anew." in text
    assert "export it anew" not in recommend(Model(dtype="float32").save(tmp_path / "float.onnx"))


def test_what_is_done_already_is_not_asked_for_again(tmp_path: Path) -> None:
    source = Model().save(tmp_path / "model.onnx")
    pipeline.run(recipe.load("k-quant"), source, tmp_path / "once")
    text = recommend(tmp_path / "once")
    assert lines_about(text, "- quantize") == ["# - quantize"]
    (tmp_path / "r.yaml").write_text(text)
    again = pipeline.run(recipe.load(str(tmp_path / "r.yaml")), tmp_path / "once", tmp_path / "twice")
    assert not [change for each in again.passes for change in each.changes]


def test_weights_behind_dequantizelinear_are_quantized_already(tmp_path: Path) -> None:
    source = Model(columns=64).save(tmp_path / "model.onnx")
    chosen = recipe.load("k-quant", settings=["quantize.format=qdq", "quantize.symmetric=true"])
    pipeline.run(chosen, source, tmp_path / "once")
    text = recommend(tmp_path / "once")
    assert lines_about(text, "- quantize") == ["# - quantize"]
    assert "export it anew" not in text


def test_the_command_prints_writes_and_refuses_to_overwrite(tmp_path: Path) -> None:
    source, file = Model().save(tmp_path / "model.onnx"), tmp_path / "r.yaml"
    text = recommend(source)

    def call(*arguments: Any) -> Any:
        return CliRunner().invoke(app, ["init", str(source), *map(str, arguments)])

    assert call().stdout == text
    assert json.loads(call("--json").stdout) == {"recipe": text, "file": None}
    assert call("-o", file).exit_code == 0
    assert file.read_text() == text
    refused = call("-o", file)
    assert refused.exit_code == 2
    assert refused.stderr == f"error: {file} exists already; give another file, or remove it\n"
