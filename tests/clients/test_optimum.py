"""What `run` makes of an optimum folder loads in its ORTModel classes and generates what the input did."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_tailor import pipeline, recipe

ROOT = Path(__file__).parents[2]
EXPORTS = ROOT / "tests" / "fixtures" / "exports"
MATRIX = Path(os.environ["ONNX_TAILOR_EXPORTS"]).absolute() if "ONNX_TAILOR_EXPORTS" in os.environ else None
"""Where tests/exporters/build.py has written its exports, to try all of them."""
BITWISE = "recipe: 1\npasses: [unpack-matmul, tie-embeddings, reshape-dim]\n"
SEQ2SEQ = ("bart", "t5")
SPEECH = ("whisper",)


def exports(*named: Path) -> list[Path]:
    more = sorted(MATRIX.glob("optimum-past-*")) if MATRIX else []
    return [*named, *(each for each in more if any(each.glob("*.onnx")) and not any(s in each.name for s in SPEECH))]


@pytest.mark.parametrize(
    "export",
    exports(
        ROOT / "examples" / "tiny-llama", EXPORTS / "optimum-past-bart-fp32", EXPORTS / "optimum-past-qwen3-moe-fp32"
    ),
    ids=lambda path: path.name,
)
def test_it_generates_what_it_did(optimum: Any, tmp_path: Path, export: Path) -> None:
    pipeline.run(recipe.parse(BITWISE, "recipe.yaml"), export, tmp_path / "out")
    task = "Seq2SeqLM" if any(name in export.name for name in SEQ2SEQ) else "CausalLM"
    folders = (export, tmp_path / "out")
    before, after = optimum(folders=folders, prompt=[1, 17, 33, 99], new_tokens=16, task=task)
    if "error" in before:
        pytest.skip(f"the input does not run: {before['error'][:100]}")
    assert after["tokens"] == before["tokens"]
    first, second = np.array(before["logits"]), np.array(after["logits"])
    assert len(first) == 16
    half = "16" in export.name or export.name == "tiny-llama"
    finite = np.isfinite(first)  # generate() forbids tokens by an infinite logit
    assert np.array_equal(finite, np.isfinite(second))
    assert np.abs(first[finite] - second[finite]).max() <= (4e-3 if half else 1e-4) * np.abs(first[finite]).max()


@pytest.mark.parametrize("options", [{"per_model": True}, {"max_shard_size": 150_000}])
def test_divided_data_are_found(optimum: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    export = EXPORTS / "optimum-past-bart-fp32"
    pipeline.run(recipe.load("tie"), export, tmp_path / "out", **options)
    assert len(list((tmp_path / "out").glob("*data*"))) > 1
    before, after = optimum(folders=(export, tmp_path / "out"), prompt=[1, 17, 33, 99], new_tokens=4, task="Seq2SeqLM")
    assert after["tokens"] == before["tokens"]


def test_a_quantized_model_generates(optimum: Any, tmp_path: Path) -> None:
    pipeline.run(recipe.load("k-quant-8bit"), ROOT / "examples" / "tiny-llama", tmp_path / "out")
    (found,) = optimum(folders=[tmp_path / "out"], prompt=[1, 17, 33, 99], new_tokens=8, task="CausalLM")
    assert len(found["tokens"]) == 12
