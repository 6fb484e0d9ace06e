"""What `run --client transformers.js` writes loads in transformers.js and generates what the same file does here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_tailor import pipeline, recipe
from onnx_tailor.verify.session import LanguageModel

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama"
GENAI = ROOT / "tests" / "fixtures" / "exports" / "genai-llama-int4-k_quant"
PROMPT, COUNT = [1, 17, 33, 99], 16
LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def greedy(file: Path) -> list[int]:
    """Return what the model says here, with ONNX Runtime for Python."""
    model = LanguageModel(file)
    assert model.logits
    ids = np.array([PROMPT])
    outputs, tokens = model.prefill(ids), []
    cache = model.cache(outputs, ids)
    for _ in range(COUNT):
        tokens.append(int(outputs[model.logits][0, -1].argmax()))
        outputs, cache = model.decode(np.array([[tokens[-1]]]), cache)
    return tokens


def ask(transformers_js: Any, home: Path, *names: str) -> list[dict[str, Any]]:
    return transformers_js(home=f"{home}/", folders=names, prompt=PROMPT, new_tokens=COUNT)


@pytest.mark.parametrize(
    ("name", "file", "size"),
    [
        ("tie", "model_fp16.onnx", None),
        ("rtn", "model_q4f16.onnx", None),
        ("k-quant-mixed", "model_q4f16.onnx", 800_000),
        ("k-quant-8bit", "model_quantized.onnx", None),
    ],
)
@pytest.mark.parametrize("target", ["cpu", "wasm"])
def test_the_example_generates(
    transformers_js: Any, tmp_path: Path, name: str, file: str, size: int | None, target: str
) -> None:
    out = tmp_path / "out"
    pipeline.run(recipe.load(name), EXAMPLE, out, target=target, client="transformers.js", max_shard_size=size)
    (found,) = ask(transformers_js, tmp_path, "out")
    assert found.get("tokens") == greedy(out / "onnx" / file), found
    if name == "tie":
        assert found["tokens"] == greedy(EXAMPLE / "model.onnx")


def test_a_genai_export_generates(transformers_js: Any, tmp_path: Path) -> None:
    """Its head size is a symbol, of which transformers.js would make 0."""
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(GENAI, source)
    (source / "config.json").write_text(json.dumps(LLAMA))
    pipeline.run(recipe.load("tie"), source, out, client="transformers.js", target="portable")
    (found,) = ask(transformers_js, tmp_path, "out")
    assert found.get("tokens") == greedy(source / "model.onnx"), found
