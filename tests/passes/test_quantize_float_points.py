"""The option `zero_points: float` of quantize: what is written, what computes with it, and what reads it again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from attention_model import Layer
from language_model import Model, ids, run
from packing import same_outputs
from typer.testing import CliRunner

from onnx_tailor import pipeline, recipe
from onnx_tailor.cli import app
from onnx_tailor.errors import UsageError
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.inspection import inspect_model
from onnx_tailor.graph.meaning.stored_weights import Blocks, stored_weights
from onnx_tailor.lint.rules import lint
from onnx_tailor.quant import BlockFormat, dequantize, quantize
from onnx_tailor.verify.pairs import pair_weights
from onnx_tailor.weights import journal, view, writer

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_tailor.report import Change, Report

HEAD = Model(columns=80, inner=144, vocabulary=300).values()["table"][::-1]
SPEC = Model(columns=80, inner=144, vocabulary=300, head="separate", weights={"lm_head": HEAD})
"""Rows of three and five blocks of 32, the last of them padded; an untied head."""
FLOAT = "zero_points: float"


def tailor(source: Path, out: Path, *passes: str, **options: Any) -> Report:
    file = source.with_name("recipe.yaml")
    file.write_text("recipe: 1\npasses: [" + ", ".join(passes) + "]\n")
    return pipeline.run(recipe.load(str(file)), source, out, **options)


def quantized(report: Report) -> list[Change]:
    return [change for each in report.passes if each.name == "quantize" for change in each.changes]


def changes(report: Report) -> dict[str, Change]:
    return {str(change.details["role"]): change for change in quantized(report)}


def stored(path: Path) -> dict[str, Any]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("method", ["rtn", "k_quant"])
@pytest.mark.parametrize(
    ("bits", "size", "dtype", "kind"),
    [
        (4, 32, "float32", "float32"),
        (2, 32, "float32", "float32"),
        (4, 32, "float32", "float16"),
        (4, 16, "float16", "float16"),
    ],
)
def test_the_file_computes_what_numpy_does(
    tmp_path: Path, bits: int, size: int, dtype: str, kind: str, method: str
) -> None:
    """And holds the very codes, scales and zero points that the search finds."""
    spec = replace(SPEC, dtype=dtype)
    source = spec.save(tmp_path / "model.onnx")
    options = f"bits: {bits}, block_size: {size}, scales: {kind if kind == 'float16' else 'model'}"
    tailor(source, tmp_path / "out", f"quantize: {{{options}, {FLOAT}, method: {method}}}")
    fmt = BlockFormat(bits, size, symmetric=False, scale_dtype=kind, float_points=True)  # type: ignore[arg-type]
    found, tensors, values = load(tmp_path / "out" / "model.onnx"), stored(tmp_path / "out" / "model.onnx"), {}
    for name, weight in spec.values().items():
        if name == "table":
            continue
        result = quantize(weight, fmt, method)  # type: ignore[arg-type]
        values[name] = dequantize(result, weight.shape[1], fmt)
        key = "lm_head.weight" if name == "lm_head" else f"model.{name}.weight"
        assert np.array_equal(tensors[f"{key}_q{bits}"], result.codes)
        assert np.array_equal(tensors[f"{key}_scales"], result.scales)
        assert np.array_equal(tensors[f"{key}_zero_points"], result.zero_points)
    for each in stored_weights(found):
        if isinstance(each.form, Blocks):
            (_, rows), *_ = each.rows()
            assert any(rows.shape == own.shape and np.allclose(rows, own, atol=1e-5) for own in values.values())
    reference = replace(spec, weights={**spec.values(), **values}).save(tmp_path / "reference.onnx")
    feeds = {"input_ids": ids(spec)}
    outputs, wanted = run(tmp_path / "out" / "model.onnx", feeds)["logits"], run(reference, feeds)["logits"]
    limit = 2e-6 if dtype == "float32" else 5e-3  # sums of float16 are rounded between the layers
    assert np.abs(outputs - wanted).max() <= limit * np.abs(wanted).max()
    assert CliRunner().invoke(app, ["check", str(tmp_path / "out")]).exit_code == 0


@pytest.mark.parametrize("bits", [2, 4])
def test_accuracy_level_4_changes_nothing(tmp_path: Path, bits: int) -> None:
    """The CPU has no kernel of 8-bit integers for them, and multiplies by a float copy of the weight."""
    source = SPEC.save(tmp_path / "model.onnx")
    found = []
    for level in (0, 4):
        options = f"bits: {bits}, {FLOAT}, scales: float16, accuracy_level: {level}"
        tailor(source, tmp_path / str(level), f"quantize: {{{options}}}")
        found.append(run(tmp_path / str(level) / "model.onnx", {"input_ids": ids(SPEC)})["logits"])
    assert np.array_equal(*found)


@pytest.mark.parametrize(("scales", "each"), [("model", 4), ("float16", 2)])
def test_bits_per_weight_count_every_zero_point(tmp_path: Path, scales: str, each: int) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    passes = f"quantize: {{{FLOAT}, scales: {scales}}}"
    forecast = tailor(source, tmp_path / "dry", passes, dry_run=True)
    report = tailor(source, tmp_path / "out", passes)
    weights = [weight for name, weight in SPEC.values().items() if name != "table"]
    blocks = sum(len(weight) * -(-weight.shape[1] // 32) for weight in weights)
    table = SPEC.values()["table"].nbytes
    assert report.after.weight_bytes == table + blocks * (16 + 2 * each)
    assert report.after.parameters == report.before.parameters
    assert forecast.after.weight_bytes == report.after.weight_bytes
    assert sum(change.bytes_after for change in quantized(report)) == blocks * (16 + 2 * each)
    found = inspect_model(load(tmp_path / "out" / "model.onnx"), 0)
    assert found.size.bits_per_weight == report.after.bits_per_weight
    assert found.size.parameters == report.before.parameters
    assert sum(int(each["bytes"]) for each in found.projections) == blocks * (16 + 2 * each)


def test_what_takes_integers_alone_keeps_them_and_says_so(tmp_path: Path) -> None:
    spec = replace(SPEC, head="transpose", weights={})
    source = spec.save(tmp_path / "model.onnx")
    nodes = 'nodes: {"role:down": 8, "role:up": {symmetric: true}}'
    found = changes(tailor(source, tmp_path / "out", "tie-embeddings", f"quantize: {{{FLOAT}, {nodes}}}"))
    kinds = {role: change.details["zero_points"] for role, change in found.items()}
    assert kinds == {"v": "float", "down": "integer", "up": None, "lm_head": "integer"}
    assert "zero points stay integers, since rows are gathered" in found["lm_head"].what
    assert "zero points stay integers, since MatMulNBits' CPU kernel fails on float ones of 8" in found["down"].what
    assert "float zero points" in found["v"].what
    assert "stay integers" not in found["up"].what + found["v"].what
    tied = tailor(source, tmp_path / "plain", "tie-embeddings", f"quantize: {{{nodes}}}")
    tables = {name: value for name, value in stored(tmp_path / "out" / "model.onnx").items() if "embed_tokens" in name}
    assert tied.after.weight_bytes < 1 << 20
    assert all(np.array_equal(stored(tmp_path / "plain" / "model.onnx")[name], tables[name]) for name in tables)


def test_a_rule_asks_for_them_alone(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    found = changes(tailor(source, tmp_path / "out", f'quantize: {{nodes: {{"role:v": {{{FLOAT}}}}}}}'))
    kinds = {role: change.details["zero_points"] for role, change in found.items()}
    assert kinds == {"v": "float", "down": "integer", "up": "integer", "lm_head": "integer"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (f"symmetric: true, {FLOAT}", "3:46: quantize: `symmetric: true` stores no zero points"),
        (f"format: qdq, {FLOAT}", "3:42: quantize: `format: qdq` takes integer zero points alone"),
        (f"bits: 8, {FLOAT}", "3:38: quantize: 8 bits take integer zero points alone"),
        (f"bits: 8, nodes: {{v: {{bits: 4, {FLOAT}}}, d: {{{FLOAT}}}}}", "3:84: quantize: 8 bits take integer"),
        (f"symmetric: true, nodes: {{v: {{{FLOAT}}}}}", "3:58: quantize: `symmetric: true` stores no zero points"),
    ],
)
def test_what_cannot_be_is_said_at_its_line(tmp_path: Path, options: str, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"recipe: 1\npasses:\n  - quantize: {{{options}}}\n")
    with pytest.raises(UsageError) as error:
        recipe.load(str(file))
    assert f"{file}:{said}" in str(error.value)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("cpu", "the CPU makes a float32 copy of the weight at every run"),
        ("cuda", "CUDA makes a float copy of the weight at every run"),
        ("webgpu", "MatMulNBits has no kernel of 4 bits with float zero points on webgpu"),
        ("portable", "no kernel of 4 bits with float zero points on portable"),
    ],
)
def test_what_a_target_makes_of_them_is_said(tmp_path: Path, target: str, said: str) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    report = tailor(source, tmp_path / "out", f"quantize: {{{FLOAT}, scales: float16}}", target=target)
    assert all(said in change.what for change in changes(report).values())
    rules = {finding.rule for finding in lint(tmp_path / "out" / "model.onnx", target).findings}
    assert "float-zero-points" in rules if target in {"cpu", "cuda"} else "no-kernel" in rules


def test_a_quantized_head_with_them_ties_no_table(tmp_path: Path) -> None:
    """The float table is the very weight of the head, but no operator gathers rows with float zero points."""
    spec = replace(SPEC, weights={})
    source = spec.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", f"quantize: {{{FLOAT}}}")
    (tied,) = tailor(tmp_path / "out" / "model.onnx", tmp_path / "tied", "tie-embeddings").passes
    assert not tied.changes
    assert "no token table can read it: its zero points are floats" in tied.skips[0].reason


@pytest.mark.parametrize("scales", ["model", "float16"])
@pytest.mark.parametrize("together", [False, True])
def test_packed_projections_are_divided_bit_for_bit(tmp_path: Path, scales: str, *, together: bool) -> None:
    """In the run that quantizes them, or in one of its own; and put together again."""
    layer = Layer(columns=80, bias=True)
    source = layer.save(tmp_path / "m.onnx")
    quantizing = f"quantize: {{{FLOAT}, block_size: 16, scales: {scales}}}"
    tailor(source, tmp_path / "whole", quantizing)
    whole = tmp_path / "whole" / "m.onnx"
    tailor(*((source, tmp_path / "out", quantizing) if together else (whole, tmp_path / "out")), "unpack-matmul")
    out = tmp_path / "out" / "m.onnx"
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert kinds.count("MatMulNBits") == 7
    assert "Split" not in kinds
    same_outputs(layer, whole, out, within=1e-6)
    tailor(out, tmp_path / "again", "pack-matmul")
    points = [value for name, value in stored(tmp_path / "again" / "m.onnx").items() if "zero_points" in name]
    wanted = [value for name, value in stored(whole).items() if "zero_points" in name]
    assert sorted(value.tobytes() for value in points) == sorted(value.tobytes() for value in wanted)


@pytest.mark.parametrize(
    ("scales", "together", "said"),
    [
        ("model", False, "their zero_points cannot be put together: they are UINT8 and FLOAT"),
        ("model", True, "an earlier pass quantizes them in different ways"),
        ("float16", False, "scales FLOAT16, zero_points UINT8; weight UINT8, scales FLOAT16, zero_points FLOAT16"),
        ("float16", True, "scales FLOAT16, zero_points UINT8; weight UINT8, scales FLOAT16, zero_points FLOAT16"),
    ],
)
def test_projections_of_both_kinds_are_not_packed(tmp_path: Path, scales: str, said: str, *, together: bool) -> None:
    source = Layer(columns=80, bias=True).save(tmp_path / "m.onnx")
    tailor(source, tmp_path / "apart", "unpack-matmul")
    apart = tmp_path / "apart" / "m.onnx"
    quantizing = f'quantize: {{block_size: 16, scales: {scales}, nodes: {{"role:v": {{{FLOAT}}}}}}}'
    tailor(apart, tmp_path / "whole", quantizing)
    whole = tmp_path / "whole" / "m.onnx"
    passes = (apart, tmp_path / "out", quantizing) if together else (whole, tmp_path / "out")
    report = tailor(*passes, "pack-matmul").passes[-1]
    assert [said in skip.reason for skip in report.skips] == [True]
    assert len(report.changes) == 1  # gate and up
    same_outputs(Layer(columns=80, bias=True), whole, tmp_path / "out" / "m.onnx", within=1e-6)


def test_blame_takes_them_for_another_form(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    models = []
    for name, options in (("whole", "{}"), ("float", f"{{{FLOAT}}}")):
        tailor(source, tmp_path / name, f"quantize: {options}")
        models.append(load(tmp_path / name / "model.onnx"))
    pairs, skipped = pair_weights(*models)
    assert len(skipped) == 7
    assert all("in different bits, blocks or forms" in line for line in skipped)
    assert [pair.bits for pair in pairs] == [None]  # the table
    pairs, skipped = pair_weights(load(source), models[1])
    errors = [pair.row_errors().max() for pair in pairs if pair.bits == 4]
    assert len(errors) == 7
    assert 0.01 < max(errors) < 0.2
    assert not skipped


def test_the_table_of_another_file_does_not_read_them(tmp_path: Path) -> None:
    """The head of the first file is an untied weight there, and the second file gathers rows of the same values."""
    folder = tmp_path / "set"
    folder.mkdir()
    SPEC.save(folder / "a_decoder.onnx")
    replace(SPEC, weights={"table": HEAD, "lm_head": HEAD[::-1]}).save(folder / "b_embeds.onnx")
    report = tailor(folder, tmp_path / "out", f"quantize: {{{FLOAT}}}")
    skips = [skip for each in report.passes for skip in each.skips if "embed_tokens" in skip.where]
    assert [skip.reason.partition("; ")[0] for skip in skips] == [
        "a token table that no head shares",
        "a token table whose head in a_decoder.onnx is stored in a form of which no rows can be gathered",
    ]
    for name in ("a_decoder.onnx", "b_embeds.onnx"):
        assert np.isfinite(run(tmp_path / "out" / name, {"input_ids": ids(SPEC)})["logits"]).all()


def test_bits_by_a_budget_count_them(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    plan = tmp_path / "plan.yaml"
    options = f'bits: auto, budget: 9 bpw, {FLOAT}, scales: float16, embeddings: true, plan: "{plan}"'
    report = tailor(source, tmp_path / "out", f"quantize: {{{options}}}")
    assert 6 < report.after.bits_per_weight <= 9
    kinds = {change.details["bits"]: change.details["zero_points"] for change in changes(report).values()}
    assert "zero_points: float" in plan.read_text()
    assert kinds.get(8, "integer") == "integer"
    again = pipeline.run(recipe.load(str(plan)), source, tmp_path / "again")
    assert again.after.weight_bytes == report.after.weight_bytes


def test_a_rule_may_ask_for_them_whatever_bits_a_budget_chooses(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    rules = f'nodes: {{"role:v": {{{FLOAT}}}, "role:up": {{bits: 2, {FLOAT}}}}}'
    report = tailor(source, tmp_path / "out", f"quantize: {{bits: auto, budget: 12 bpw, block_size: 32, {rules}}}")
    found = {(change.details["bits"], change.details["zero_points"]) for change in quantized(report)}
    assert {bits for bits, points in found if points == "float"} <= {2, 4}
    assert (8, "integer") in found
    assert (2, "float") in found


def test_the_same_bytes_for_any_number_of_threads_and_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "TILE_BYTES", 4096)
    source = SPEC.save(tmp_path / "model.onnx")
    passes = f"quantize: {{{FLOAT}, scales: float16}}"
    found = []
    for threads in (1, 5):
        monkeypatch.setattr(writer, "workers", lambda threads=threads: threads)
        tailor(source, tmp_path / str(threads), passes)
        found.append((tmp_path / str(threads) / "model.onnx.data").read_bytes())
    note, count = journal.Journal.note, [0]

    def failing(self: journal.Journal, task: int, record: journal.Record) -> None:
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        note(self, task, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "note", failing)
        with pytest.raises(KeyboardInterrupt):
            tailor(source, tmp_path / "out", passes)
    tailor(source, tmp_path / "out", passes, resume=True)
    found.append((tmp_path / "out" / "model.onnx.data").read_bytes())
    assert found[0] == found[1] == found[2]
