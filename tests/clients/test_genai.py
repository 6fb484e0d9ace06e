"""What `run` makes of a GenAI builder's folder loads in onnxruntime-genai and generates what the input did."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_tailor import pipeline, recipe
from onnx_tailor.verify.metrics import logit_sums
from onnx_tailor.verify.session import LanguageModel

EXPORTS = Path(__file__).parents[1] / "fixtures" / "exports"
MATRIX = Path(os.environ.get("ONNX_TAILOR_EXPORTS", "")).absolute() if "ONNX_TAILOR_EXPORTS" in os.environ else None
"""Where tests/exporters/build.py has written its exports, to try all of them."""
PROMPT = [1, 17, 33, 99, 250, 4, 8, 15]
BITWISE = "recipe: 1\npasses: [unpack-matmul, tie-embeddings, reshape-dim]\n"


def exports(pattern: str, *fixtures: str) -> list[Path]:
    """Return the fixtures and, of the matrix, what is no speech model and no float table beside an 8-bit head."""
    more = [each for each in sorted(MATRIX.glob(pattern)) if any(each.glob("*.onnx"))] if MATRIX else []
    return [
        *(EXPORTS / name for name in fixtures),
        *(p for p in more if "whisper" not in p.name and "int8" not in p.name),
    ]


def ask(genai: Any, *folders: Path) -> list[dict[str, Any]]:
    return genai(folders=folders, prompt=PROMPT, new_tokens=16)


def rewrite(text: str, source: Path, out: Path, **options: Any) -> Path:
    pipeline.run(recipe.parse(text, "recipe.yaml") if "\n" in text else recipe.load(text), source, out, **options)
    return out


@pytest.mark.parametrize(
    "export", exports("genai-*", "genai-phi4-fp16", "genai-llama-int4-k_quant"), ids=lambda path: path.name
)
@pytest.mark.parametrize("target", ["cpu", "cuda", "portable"])
def test_it_generates_what_it_did(genai: Any, tmp_path: Path, export: Path, target: str) -> None:
    before, after = ask(genai, export, rewrite(BITWISE, export, tmp_path / "out", target=target))
    if "error" in before:  # some run only after it, such as those whose sizes are named wrongly
        pytest.skip(f"the input does not run: {before['error'][:100]}")
    assert after["tokens"] == before["tokens"]
    first, second = np.array(before["logits"]), np.array(after["logits"])
    assert np.abs(first - second).max() <= (4e-3 if "16" in export.name else 1e-4) * np.abs(first).max()


@pytest.mark.parametrize("name", ["rtn", "k-quant-8bit", "unpack-k-quant-mixed"])
def test_it_is_as_far_from_the_input_as_verify_says(genai: Any, tmp_path: Path, name: str) -> None:
    export = EXPORTS / "genai-phi4-fp16"
    before, after = ask(genai, export, rewrite(name, export, tmp_path / "out"))
    models = [LanguageModel(folder / "model.onnx") for folder in (export, tmp_path / "out")]
    ids = np.array([PROMPT])
    verified = [model.prefill(ids)[model.logits][0] for model in models]
    generated = [np.array(each["logits"], np.float32) for each in (before, after)]
    expected, found = (logit_sums(*pair, ids[0]).kl_mean for pair in (verified, generated))
    assert expected > 0
    assert abs(found - expected) <= 0.02 * expected + 1e-6
    assert len(after["tokens"]) == 16


def test_a_renamed_model_is_found(genai: Any, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(EXPORTS / "genai-llama-int4-k_quant", source)
    (before,) = ask(genai, source)
    (source / "model.onnx").rename(source / "small.onnx")
    (renamed,) = ask(genai, source)
    assert "error" in renamed  # its genai_config.json still names model.onnx
    (after,) = ask(genai, rewrite("tie", source, tmp_path / "out"))
    assert after["tokens"] == before["tokens"]


def test_the_folder_of_transformers_js_runs_here_too(genai: Any, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(EXPORTS / "genai-llama-int4-k_quant", source)
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    out = rewrite(BITWISE, source, tmp_path / "out", client="transformers.js", target="portable")
    before, after = ask(genai, source, out)
    assert after["tokens"] == before["tokens"]
