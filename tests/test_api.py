"""The Python interface does what the command line does."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from language_model import Model

import onnx_tailor as ot
from onnx_tailor import testing

if TYPE_CHECKING:
    from pathlib import Path


def test_everything_it_offers_is_there_and_loads_late() -> None:
    assert all(hasattr(ot, name) for name in ot.__all__)
    code = "import sys, onnx_tailor; print({'numpy', 'onnx', 'onnxruntime', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
    with pytest.raises(AttributeError, match="has no attribute 'frobnicate'"):
        ot.frobnicate  # type: ignore[attr-defined]  # noqa: B018


def test_passes_made_in_python_run_as_a_recipe_of_them(tmp_path: Path) -> None:
    source = Model().save(tmp_path / "model.onnx")
    report = ot.run([ot.passes.TieEmbeddings(required=True), ot.passes.Quantize(bits=8)], source, tmp_path / "a")
    file = tmp_path / "r.yaml"
    file.write_text("recipe: 1\npasses: [tie-embeddings: {required: true}, quantize: {bits: 8}]")
    same = ot.run(str(file), str(source), str(tmp_path / "b"))
    assert (
        [each.name for each in report.passes] == [each.name for each in same.passes] == ["tie-embeddings", "quantize"]
    )
    first, second = tmp_path / "a" / "model.onnx", tmp_path / "b" / "model.onnx"
    assert testing.graph_text(first) == testing.graph_text(second)
    assert first.with_name("model.onnx.data").read_bytes() == second.with_name("model.onnx.data").read_bytes()
    assert ot.compare(source, tmp_path / "a" / "model.onnx").kl_mean == pytest.approx(0, abs=1e-3)
    assert ot.inspect(tmp_path / "a").files[0].tied["state"] == "tied"


def test_the_output_is_laid_out_as_asked(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = Model().save(tmp_path / "in" / "model.onnx")
    (tmp_path / "in" / "config.json").write_text("{}")
    passes = [ot.passes.TieEmbeddings(), ot.passes.Quantize(bits=4)]
    ot.run(passes, source, tmp_path / "web", client="transformers.js")
    assert (tmp_path / "web" / "onnx" / "model_q4.onnx").exists()
    ot.run(passes, source, tmp_path / "shards", max_shard_size=16_384)
    sizes = [file.stat().st_size for file in (tmp_path / "shards").glob("*.data*")]
    assert len(sizes) > 1
    assert max(sizes) <= 16_384


def test_errors_are_sentences(tmp_path: Path) -> None:
    source = Model().save(tmp_path / "model.onnx")
    with pytest.raises(ot.UsageError, match=r"^passes:2:1: quantize: pattern 'x' matches no weight"):
        ot.run([ot.passes.TieEmbeddings(), ot.passes.Quantize(nodes={"x": 4})], source, tmp_path / "out")
    with pytest.raises(ot.ModelError, match="is missing"):
        ot.load(tmp_path / "none.onnx")
    passes = [ot.passes.TieEmbeddings()]
    with pytest.raises(ot.UsageError, match="target 'gpu' is none of cpu"):
        ot.run(passes, source, tmp_path / "out", target="gpu")
    with pytest.raises(ot.UsageError, match=r"client 'ollama' is none of transformers\.js"):
        ot.run(passes, source, tmp_path / "out", client="ollama")  # type: ignore[arg-type]
    with pytest.raises(ot.OutputError, match="/proc/none/out: cannot be written"):
        ot.run(passes, source, "/proc/none/out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "foo"}, r"passes:1:1: quantize\.method is 'foo'; it must be rtn, "),
        ({"bits": 5}, r"quantize\.bits is 5; it must be 2, 4, 8, float or auto"),
        ({"block_size": "32"}, r"quantize\.block_size is '32'; it must be a whole number"),
        ({"accuracy_level": 7}, r"quantize\.accuracy_level is 7"),
        ({"plan": "p.yaml"}, "`plan` is what a goal chose, and there is none"),
        ({"format": "qdq", "accuracy_level": 4}, "`accuracy_level` is MatMulNBits' own"),
        ({"nodes": {"role:v": {"layers": "0-"}}}, "layers '0-' is no list of layers"),
        ({"nodes": {"role:v": {"bitz": 8}}}, r"has no option 'bitz'; did you mean bits"),
        ({"method": "imatrix", "calibration": "none.npz"}, r"none\.npz"),
    ],
)
def test_options_that_python_let_pass(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = Model().save(tmp_path / "model.onnx")
    with pytest.raises(ot.UsageError, match=message):
        ot.run([ot.passes.Quantize(**options)], source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_as_a_recipe_has_them(tmp_path: Path) -> None:
    source = Model().save(tmp_path / "model.onnx")
    report = ot.run([ot.passes.Quantize(nodes={"role:v": {"bits": 8}})], source, tmp_path / "out")  # type: ignore[dict-item]
    assert {change.details["bits"] for change in report.passes[0].changes if "v_proj" in change.where} == {8}


def test_loading_leaves_the_hosts_loggers_alone(tmp_path: Path) -> None:
    ot.load(Model().save(tmp_path / "model.onnx"))
    assert not logging.getLogger("onnx_ir.serde").disabled


def test_the_kit_shows_a_graph_and_finds_a_difference(tmp_path: Path) -> None:
    source = Model(layers=0).save(tmp_path / "model.onnx")
    assert testing.graph_text(source).splitlines() == [
        "/model/embed_tokens/Gather_output = Gather(model.embed_tokens.weight, input_ids)",
        "/lm_head/Transpose_output = Transpose<perm=(1, 0)>(model.embed_tokens.weight)",
        "logits = MatMul(/model/embed_tokens/Gather_output, /lm_head/Transpose_output)",
    ]
    testing.apply(ot.passes.TieEmbeddings(), source, tmp_path / "tied")
    testing.apply(ot.passes.Quantize(bits=4), source, tmp_path / "coarse")
    testing.assert_same_outputs(source, source, limit=0)
    testing.assert_same_outputs(source, tmp_path / "tied" / "model.onnx", limit=1e-5)
    with pytest.raises(AssertionError, match="differ by more than 1e-05 of their largest value: logits by"):
        testing.assert_same_outputs(source, tmp_path / "coarse" / "model.onnx", limit=1e-5)
