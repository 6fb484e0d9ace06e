"""The option `zero_points` of quantize."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from attention_model import Layer
from language_model import Model, ids, run
from onnx import TensorProto
from packing import same_outputs
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.stored_weights import Blocks, stored_weights
from onnx_tailor.quant import BlockFormat, dequantize, quantize

if TYPE_CHECKING:
    from collections.abc import Sequence

SPEC = Model(columns=64, inner=96, vocabulary=300)


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(each) for each in arguments])


def recipe(folder: Path, *passes: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text("recipe: 1\npasses:\n" + "".join(f"  - {each}\n" for each in passes))
    return file


def tailor(source: Path, out: Path, *passes: str, more: Sequence[object] = ()) -> list[dict]:
    """Run passes; return the changes of the last."""
    result = call("run", recipe(source.parent, *passes), source, "-o", out, "--json", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["passes"][-1]["changes"]


def stored(weights: dict[str, np.ndarray], scales: str, bits: int = 4) -> dict[str, np.ndarray]:
    """Return the values that a tied table (with integers) and projections (with floats) are stored as."""
    found = {}
    for name, weight in weights.items():
        fmt = BlockFormat(bits, 32, symmetric=False, scale_dtype=scales, float_points=name != "table")  # type: ignore[arg-type]
        if weight.ndim == 2 and name != "lm_head":
            found[name] = dequantize(quantize(weight, fmt, "k_quant"), weight.shape[1], fmt)
    return {**found, "lm_head": found["table"]}


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("scales", ["float32", "float16"])
def test_the_model_computes_with_them(tmp_path: Path, scales: str, bits: int) -> None:
    """Weights that are the stored values make the reference."""
    source = SPEC.save(tmp_path / "model.onnx")
    narrow = ", scales: float16" if scales == "float16" else ""
    changes = tailor(
        source, tmp_path / "out", "tie-embeddings", f"quantize: {{bits: {bits}, zero_points: float{narrow}}}"
    )
    reference = replace(SPEC, weights=stored(SPEC.values(), scales, bits)).save(tmp_path / "reference.onnx")
    feeds = {"input_ids": ids(SPEC)}
    found, wanted = run(tmp_path / "out" / "model.onnx", feeds)["logits"], run(reference, feeds)["logits"]
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()
    told = {change["details"]["role"]: change for change in changes}
    assert told["down"]["details"]["zero_points"] == "float"
    assert "float zero points" in told["down"]["what"]
    assert "many times longer" in told["down"]["what"]
    table = next(change for change in changes if change["details"]["readers"] == 2)
    assert table["details"]["zero_points"] == "integer"
    assert "integer zero points, which a table needs" in table["what"]


def test_a_float16_model(tmp_path: Path) -> None:
    spec = replace(SPEC, dtype="float16")
    source = spec.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", "tie-embeddings", "quantize: {zero_points: float}")
    reference = replace(spec, weights=stored(spec.values(), "float16")).save(tmp_path / "reference.onnx")
    feeds = {"input_ids": ids(SPEC)}
    found, wanted = run(tmp_path / "out" / "model.onnx", feeds)["logits"], run(reference, feeds)["logits"]
    assert np.abs(found.astype(np.float32) - wanted).max() <= 2e-3 * np.abs(wanted).max()


def test_sizes_and_what_reads_the_file_again(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    options = "quantize: {zero_points: float, scales: float16}"
    tailor(source, tmp_path / "out", "tie-embeddings", options)
    file = tmp_path / "out" / "model.onnx"
    kinds = [t.data_type for t in onnx.load(file).graph.initializer if t.name.endswith("zero_points")]
    assert sorted(kinds) == [TensorProto.UINT8] + [TensorProto.FLOAT16] * 6
    report = json.loads(call("inspect", file, "--json").stdout)
    weights = {name: value for name, value in SPEC.values().items() if value.ndim == 2 and name != "lm_head"}
    bits = sum(w.size * (4.625 if name == "table" else 5.0) for name, w in weights.items())
    (size,) = (each["size"] for each in report["files"])
    assert size["bits_per_weight"] == pytest.approx(bits / sum(w.size for w in weights.values()), rel=0.02)
    read = {each.name: each for each in stored_weights(load(file))}
    assert all(isinstance(each.form, Blocks) for each in read.values())
    expected = stored(SPEC.values(), "float16")
    up = np.concatenate([part for _, part in next(v for v in read.values() if v.shape == (96, 64)).rows()])
    np.testing.assert_allclose(up, expected["layers.0.mlp.up_proj"], rtol=1e-5, atol=1e-6)
    assert call("check", tmp_path / "out").exit_code == 0
    assert call("lint", file, "--target", "cpu").exit_code == 0


@pytest.mark.parametrize("scales", ["model", "float16"])
def test_packed_projections_are_divided_and_joined_with_them(tmp_path: Path, scales: str) -> None:
    layer = Layer()
    source = layer.save(tmp_path / "m.onnx")
    tailor(source, tmp_path / "packed", f"quantize: {{zero_points: float, scales: {scales}}}")
    packed = tmp_path / "packed" / "m.onnx"
    changes = tailor(packed, tmp_path / "parts", "unpack-matmul")
    assert len(changes) == 2
    again = tailor(tmp_path / "parts" / "m.onnx", tmp_path / "joined", "pack-matmul")
    assert len(again) == 2
    for name in ("parts", "joined"):
        same_outputs(layer, packed, tmp_path / name / "m.onnx")


def test_accuracy_level_4_reads_them(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    options = "zero_points: float, scales: float16"
    for level in (0, 4):
        tailor(source, tmp_path / str(level), "tie-embeddings", f"quantize: {{{options}, accuracy_level: {level}}}")
    feeds = {"input_ids": ids(SPEC)}
    exact, rounded = (run(tmp_path / level / "model.onnx", feeds)["logits"] for level in ("0", "4"))
    assert np.abs(exact - rounded).max() <= 0.05 * np.abs(exact).max()


def test_eight_bits_and_one_entry_of_nodes(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    changes = tailor(
        source,
        tmp_path / "out",
        "quantize: {nodes: {'role:down': {bits: 8, zero_points: float}, 'role:up': {zero_points: float}}}",
    )
    told = {(c["details"]["role"], c["details"]["layer"]): c for c in changes}
    assert "integer zero points, as 8 bits have" in told["down", 0]["what"]
    assert told["up", 1]["details"]["zero_points"] == "float"
    assert told["v", 0]["details"]["zero_points"] == "integer"
    feeds = {"input_ids": ids(SPEC)}
    assert np.isfinite(run(tmp_path / "out" / "model.onnx", feeds)["logits"]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{zero_points: float, symmetric: true}", "recipe.yaml:3:29: quantize: a symmetric weight has no zero points"),
        (
            "{zero_points: float, format: qdq}",
            "recipe.yaml:3:29: quantize: DequantizeLinear takes zero points of its codes'",
        ),
        (
            "{symmetric: true, nodes: {'role:up': {zero_points: float}}}",
            "a symmetric weight has no zero points",
        ),
    ],
)
def test_what_cannot_be(tmp_path: Path, options: str, said: str) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    result = call("run", recipe(tmp_path, f"quantize: {options}"), source, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bytes_by_any_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    from onnx_tailor.weights import view

    source = SPEC.save(tmp_path / "model.onnx")
    options = ["tie-embeddings", "quantize: {zero_points: float}"]
    tailor(source, tmp_path / "one", *options)
    monkeypatch.setattr(view, "TILE_BYTES", 4096)
    monkeypatch.setattr("onnx_tailor.weights.threads.workers", lambda: threads)
    tailor(source, tmp_path / "two", *options)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_budget_counts_them(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    plan = tmp_path / "plan.yaml"
    options = (
        f"quantize: {{bits: auto, budget: 6 bpw, scales: float16, zero_points: float, plan: {json.dumps(str(plan))}}}"
    )
    result = call("run", recipe(tmp_path, "tie-embeddings", options), source, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["after"]["bits_per_weight"] <= 6
    assert "zero_points: float" in plan.read_text()
    assert call("run", plan, source, "-o", tmp_path / "again").exit_code == 0
    data = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("out", "again")]
    assert data[0] == data[1]
