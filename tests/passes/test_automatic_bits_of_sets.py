"""`bits: auto` of quantize on the files of a folder."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import seq2seq_models as models
from seq2seq_models import VOCABULARY, values

from onnx_tailor import pipeline, recipe
from onnx_tailor.calibration.tokens import choose, unseen
from onnx_tailor.errors import UsageError
from onnx_tailor.passes.quantize import Quantize
from onnx_tailor.passes.tie_embeddings import TieEmbeddings
from onnx_tailor.verify import compare
from onnx_tailor.verify.metrics import LogitSums, logit_sums
from onnx_tailor.verify.tokens import random_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_tailor.report import Change, Report


class Phases:
    """A progress that keeps the names of the phases."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def start(self, what: str, total: int, unit: str = "bytes") -> None:
        self.names.append(what)

    def advance(self, count: int) -> None:
        pass

    def finish(self) -> None:
        pass


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return models.save(tmp_path / "set")


def tailor(source: Path, out: Path, options: str, **settings: Any) -> Report:
    file = out.with_name(f"{out.name}.yaml")
    file.write_text(f"recipe: 1\npasses: [tie-embeddings, quantize: {{{options}}}]\n")
    return pipeline.run(recipe.load(str(file)), source, out, **settings)


def changes(report: Report, name: str) -> dict[str, Change]:
    """Return what quantize did to one file, by the weight."""
    return {
        change.details["weight"]: change
        for each in report.passes
        if each.file == name and each.name == "quantize"
        for change in each.changes
    }


def bits(report: Report, name: str) -> dict[str, int]:
    return {weight: change.details["bits"] for weight, change in changes(report, name).items()}


def divergence(source: Path, out: Path) -> float:
    """Return that of the set as a whole, on the tokens that are measured."""
    total = LogitSums()
    for window in random_tokens(VOCABULARY, windows=4, length=64, seed=1).windows:
        first, second = (models.logits(folder, window[None])[0] for folder in (source, out))
        total += logit_sums(first, second, window)
    return total.kl_mean


def test_an_encoder_is_measured_by_the_decoder_that_reads_it(tmp_path: Path) -> None:
    """Half of the encoder is as good as idle; of the other half, the decoder makes more than of its own weights."""
    source = models.save(tmp_path / "set", encoder_a=0.02, cross=20.0)
    report = tailor(source, tmp_path / "out", "method: best, budget: 5.2 bpw")
    assert report.after.bits_per_weight <= 5.2
    found = bits(report, "encoder_model.onnx") | bits(report, "decoder_model.onnx")
    assert found["encoder.a"] < found["decoder.b"] < found["encoder.b"]
    told = [change.what for change in changes(report, "encoder_model.onnx").values() if "encoder" in change.where]
    assert len(told) == 2
    assert all("bits by what the predictions of decoder_model.onnx lose" in what for what in told)


def test_an_encoder_of_sounds_is_measured_likewise(tmp_path: Path) -> None:
    source = models.save(tmp_path / "set", cross=20.0)
    models.listener(source / "encoder_model.onnx", values(encoder_a=0.02, encoder_b=0.3))
    report = tailor(source, tmp_path / "out", "method: best, budget: 5 bpw")
    found = changes(report, "encoder_model.onnx")
    assert found["encoder.a"].details["bits"] < found["encoder.b"].details["bits"]
    for change in found.values():
        assert change.details["method"] == "gptq"
        assert "bits by what the predictions of decoder_model.onnx lose" in change.what
    compared = compare(source / "encoder_model.onnx", tmp_path / "out" / "encoder_model.onnx")
    assert [0 < each.max_rel < 1 for each in compared.outputs] == [True]


@pytest.mark.parametrize("key", ["max_position_embeddings", "max_target_positions", "n_positions"])
def test_windows_are_no_longer_than_the_model_takes(source: Path, key: str) -> None:
    path = source / "decoder_model.onnx"
    assert [each.windows.shape for each in (choose(path), unseen(path))] == [(64, 256), (4, 256)]
    (source / "config.json").write_text(json.dumps({key: 48, "max_source_positions": 8}))
    assert [each.windows.shape for each in (choose(path), unseen(path))] == [(64, 48), (4, 48)]


def test_equal_weights_have_equal_codes_and_are_stored_once(source: Path, tmp_path: Path) -> None:
    phases = Phases()
    report = tailor(source, tmp_path / "out", "method: best, budget: 6 bpw", progress=phases)
    one, two = (changes(report, f"decoder{name}_model.onnx") for name in ("", "_with_past"))
    assert set(two) == set(one) - {"cross"}
    for weight, change in two.items():
        for key in ("bits", "method", "relative_error"):
            assert change.details[key] == one[weight].details[key]
        assert "as in decoder_model.onnx, which has the same weight" in change.what
    everything = {**changes(report, "encoder_model.onnx"), **one}
    distinct = sum(change.bytes_after for change in everything.values())
    assert report.after.weight_bytes < distinct + 3 * 1024  # the zero points of a file lie in it where they are few
    assert phases.names.count("watching activations") == 2  # nothing is new in the second decoder
    assert sum(name.startswith("measuring the cost of bits") for name in phases.names) == 1


def test_gptq_of_a_set_stores_equal_weights_once(source: Path, tmp_path: Path) -> None:
    sizes = [
        tailor(source, tmp_path / method, f"method: {method}").after.weight_bytes for method in ("gptq", "k_quant")
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("limit", [1e-3, 2e-5])
def test_a_divergence_is_that_of_the_whole_set(source: Path, tmp_path: Path, limit: float) -> None:
    report = tailor(source, tmp_path / "out", f"method: best, kl: {limit}")
    assert changes(report, "encoder_model.onnx")
    assert limit / 100 < divergence(source, tmp_path / "out") <= limit


@pytest.mark.parametrize(("size", "per_model"), [(175, False), (240, True)])
def test_a_size_is_that_of_the_folder(source: Path, tmp_path: Path, size: int, per_model: bool) -> None:
    report = tailor(source, tmp_path / "out", f"method: best, size: {size} KB", per_model=per_model)
    written = sum(file.stat().st_size for file in (tmp_path / "out").iterdir() if file.suffix in {".onnx", ".data"})
    assert size * 400 < written <= size * 1000
    assert changes(report, "encoder_model.onnx")


def test_without_logits_a_file_is_measured_by_its_own_outputs(tmp_path: Path) -> None:
    """No decoder takes states of this width."""
    source = models.save(tmp_path / "set", encoder_a=0.02, encoder_b=2.0)
    models.encoder(source / "encoder_model.onnx", values(encoder_a=0.02, encoder_b=2.0), keep=32)
    report = tailor(source, tmp_path / "out", "method: best, budget: 6 bpw")
    found = bits(report, "encoder_model.onnx")
    assert found["encoder.a"] < found["encoder.b"]
    what = changes(report, "encoder_model.onnx")["encoder.b"].what
    assert (
        "bits by what the file's own outputs lose within an even share of the goal, since it yields no logits" in what
    )
    assert report.after.bits_per_weight <= 6


def test_a_single_encoder_is_measured_by_its_own_outputs(tmp_path: Path) -> None:
    source = models.encoder(tmp_path / "model.onnx", values(encoder_a=0.02, encoder_b=2.0))
    report = tailor(source, tmp_path / "out", "method: best, budget: 4.3 bpw, embeddings: true")
    found = bits(report, "model.onnx")
    assert found["encoder.a"] < found["encoder.b"]
    assert report.after.bits_per_weight <= 4.3
    with pytest.raises(UsageError, match=r"nothing here yields logits, so no divergence can be kept; give `budget`"):
        tailor(source, tmp_path / "kl", "method: best, kl: 0.1")


def test_a_file_that_tokens_do_not_run_gets_the_same_bits_everywhere(source: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    own = {name: random.standard_normal((64, 64), np.float32) for name in ("encoder.a", "encoder.b")}
    models.camera(source / "vision_encoder.onnx", own)
    for options in ("budget: 6 bpw", "kl: 0.001"):
        report = tailor(source, tmp_path / options[:2], f"method: best, {options}")
        found = changes(report, "vision_encoder.onnx")
        assert len({change.details["bits"] for change in found.values()}) == 1
        assert len(found) == 2
        for change in found.values():
            assert "k_quant (gptaq is not possible: the file cannot be run: " in change.what
            assert "the same bits for all of this file within an even share of the goal" in change.what
            assert "pixel_values" in change.what
        assert report.after.bits_per_weight <= 6 or options.startswith("kl")


def test_the_plan_of_a_set_is_a_recipe_for_it(source: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    options = f'method: best, budget: 5 bpw, plan: "{plan}", nodes: {{"*cross*": {{bits: 8, symmetric: true}}}}'
    first = tailor(source, tmp_path / "first", options)
    assert bits(first, "decoder_model.onnx")["cross"] == 8
    pipeline.run(recipe.load(str(plan)), source, tmp_path / "second")
    data = [(tmp_path / name / "weights.data").read_bytes() for name in ("first", "second")]
    assert data[0] == data[1]


def test_a_plan_cannot_say_two_things_of_one_name(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number, name in enumerate(("a", "b")):  # the layer that matters is another in each
        scales = {"encoder_a": (0.02, 2.0)[number], "encoder_b": (2.0, 0.02)[number]}
        models.encoder(folder / f"{name}.onnx", values(**scales))
    options = f'method: k_quant, bits: auto, budget: 4.3 bpw, embeddings: true, plan: "{tmp_path / "p.yaml"}"'
    with pytest.raises(UsageError, match=r"two files have a weight '/encoder/layers\.\d/mlp.* with different bits"):
        tailor(folder, tmp_path / "out", options)


def test_a_pattern_may_mean_a_weight_of_one_file_alone(source: Path, tmp_path: Path) -> None:
    steps = [TieEmbeddings(), Quantize(nodes={"/encoder/*": 8, "role:lm_head": 2})]
    report = pipeline.run(recipe.of_passes(steps), source, tmp_path / "out")
    assert set(bits(report, "encoder_model.onnx").values()) == {8, 2}  # its table is the head
    assert bits(report, "decoder_model.onnx") == {"table": 2, "cross": 4, "decoder.a": 4, "decoder.b": 4}
    with pytest.raises(UsageError, match=r"pattern '/nowhere/\*' matches no weight"):
        pipeline.run(recipe.of_passes([Quantize(nodes={"/nowhere/*": 8})]), source, tmp_path / "none")


def test_the_report_goes_file_by_file(source: Path, tmp_path: Path) -> None:
    report = tailor(source, tmp_path / "out", "method: rtn")
    files = [file for file, _ in itertools.groupby(each.file for each in report.passes)]
    assert files == ["decoder_model.onnx", "decoder_with_past_model.onnx", "encoder_model.onnx"]
    assert [each.name for each in report.passes] == ["tie-embeddings", "quantize"] * 3
