"""What `run --client transformers.js` writes loads in transformers.js and generates what the same file does here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnx_tailor import pipeline, recipe
from onnx_tailor.verify.session import LanguageModel

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama"
GENAI = ROOT / "tests" / "fixtures" / "exports" / "genai-llama-int4-k_quant"
BART = ROOT / "tests" / "fixtures" / "exports" / "optimum-past-bart-fp32"
PROMPT, COUNT = [1, 17, 33, 99], 16
LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def greedy(file: Path) -> list[int]:
    """Return the prompt and what the model says here, with ONNX Runtime for Python."""
    model = LanguageModel(file)
    assert model.logits
    ids, tokens = np.array([PROMPT]), [*PROMPT]
    outputs = model.prefill(ids)
    cache = model.cache(outputs, ids)
    for _ in range(COUNT):
        tokens.append(int(outputs[model.logits][0, -1].argmax()))
        outputs, cache = model.decode(np.array([[tokens[-1]]]), cache)
    return tokens


def ask(
    transformers_js: Any, home: Path, *names: str, device: str = "cpu", task: str = "CausalLM"
) -> list[dict[str, Any]]:
    asked = {"prompt": PROMPT, "new_tokens": COUNT, "device": device, "task": task}
    return transformers_js(home=f"{home}/", folders=names, **asked)


def widened(folder: Path) -> Path:
    """Write the example in float32: software WebGPU adapters have no float16."""
    model = onnx.load(EXAMPLE / "model.onnx")
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    tensors = [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t"))]
    for tensor in tensors:
        if tensor.data_type == half:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in {"to", "dtype"} and attribute.i == half:
                attribute.i = single
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    del model.graph.value_info[:]
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    shutil.copy(EXAMPLE / "config.json", folder)
    return folder


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


def test_an_encoder_and_its_decoder_generate(transformers_js: Any, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(BART, source / "onnx")
    (source / "onnx" / "config.json").rename(source / "config.json")
    pipeline.run(recipe.load("tie"), source, out, client="transformers.js")
    before, after = ask(transformers_js, tmp_path, "in", "out", task="Seq2SeqLM")
    assert after.get("tokens") == before["tokens"], after
    assert len(after["tokens"]) == 1 + COUNT


RECIPES = ("tie", "rtn", "k-quant-8bit")


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
def test_the_example_generates_in_a_browser(transformers_js: Any, tmp_path: Path, device: str) -> None:
    source = widened(tmp_path / "in")
    for name in RECIPES:
        pipeline.run(recipe.load(name), source, tmp_path / name, target=device, client="transformers.js")
    found = ask(transformers_js, tmp_path, *RECIPES, device=device)
    expected = [greedy(next((tmp_path / name / "onnx").glob("*.onnx"))) for name in RECIPES]
    assert [each.get("tokens") for each in found] == expected, found
    assert expected[0] == greedy(source / "model.onnx")


def test_float16_generates_as_webassembly(transformers_js: Any, tmp_path: Path) -> None:
    for name in RECIPES:
        pipeline.run(recipe.load(name), EXAMPLE, tmp_path / name, target="wasm", client="transformers.js")
    found = ask(transformers_js, tmp_path, *RECIPES, device="wasm")
    expected = [greedy(next((tmp_path / name / "onnx").glob("*.onnx"))) for name in RECIPES]
    assert [each.get("tokens") for each in found] == expected, found
