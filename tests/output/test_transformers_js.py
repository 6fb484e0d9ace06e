"""The folder that transformers.js loads, by name and by what its config says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app
from onnx_tailor.graph.file.load import load
from onnx_tailor.output import transformers_js

ROOT = Path(__file__).parents[2]
GENAI = ROOT / "tests" / "fixtures" / "exports" / "genai-llama-int4-k_quant"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(recipe: str, model: Path, out: Path, *options: object) -> dict[str, Any]:
    result = call("run", recipe, model, "-o", out, "--client", "transformers.js", "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def configured(folder: Path, **content: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **content}), encoding="utf-8")
    return folder


def cached(dtype: int, name: str = "past_key_values.0.key", size: str | int = 16, batch: str = "s0") -> Any:
    """Return an edit that gives the model a cache input, which leads to an output."""

    def edit(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info(name, dtype, [batch, 2, "past", size]))
        model.graph.output.append(helper.make_tensor_value_info("present.0.key", dtype, [batch, 2, "past", size]))
        model.graph.node.append(helper.make_node("Identity", [name], ["present.0.key"], name="/cache"))

    return edit


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = handmade.decoder(tmp_path / "in" / "model.onnx")
    configured(path.parent, **{"transformers.js_config": {"device": "webgpu", "use_external_data_format": True}})
    return path


@pytest.mark.parametrize(
    ("recipe", "name", "dtype"),
    [("tie", "model", "fp32"), ("rtn", "model_q4", "q4"), ("rtn-8bit", "model_quantized", "q8")],
)
def test_names_follow_from_the_weights(tmp_path: Path, model: Path, recipe: str, name: str, dtype: str) -> None:
    report = run(recipe, model, tmp_path / "out")
    expected = ["config.json", f"onnx/{name}.onnx", f"onnx/{name}.onnx_data", "tailor-report.json"]
    assert files(tmp_path / "out") == sorted(report["files"]) == expected
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {
        "model_type": "llama",
        "transformers.js_config": {
            "device": "webgpu",
            "dtype": dtype,
            "use_external_data_format": {f"{name}.onnx": 1},
        },
    }
    onnx.checker.check_model(str(tmp_path / "out" / "onnx" / f"{name}.onnx"))
    assert call("check", tmp_path / "out").exit_code == 0
    assert call("verify", model, tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(
    ("operator", "codes", "dtype"),
    [
        ("MatMulInteger", "i = MatMulInteger(q, C) logits = Cast<to = 1>(i)", "q8"),
        ("DequantizeLinear", "d = DequantizeLinear(C, s) logits = MatMul(x, d)", "q8"),
        ("of activations alone", "d = DequantizeLinear(q, s, z) logits = MatMul(d, F)", "fp32"),
        ("a bias", "d = DequantizeLinear(B, s) m = MatMul(x, F) logits = Add(m, d)", "fp32"),
    ],
)
def test_integers_of_other_operators_name_a_file_as_well(tmp_path: Path, operator: str, codes: str, dtype: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]> model (float[b, 8] x) => (float[b, 8] logits)
    <uint8[8, 8] C, float[8, 8] F, int32[8] B> {{ q, s, z = DynamicQuantizeLinear(x) {codes} }}"""
    model = onnx.parser.parse_model(text)
    del model.graph.initializer[:]
    values = {"C": np.ones((8, 8), np.uint8), "F": np.ones((8, 8), np.float32), "B": np.ones(8, np.int32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items())
    onnx.save(model, tmp_path / "model.onnx")
    assert transformers_js.dtype(load(tmp_path / "model.onnx")) == dtype, operator


def test_chunks_are_counted_and_the_forecast_names_them(tmp_path: Path, model: Path) -> None:
    forecast = json.loads(
        call(
            "run", "tie", model, "--dry-run", "--client", "transformers.js", "--max-shard-size", "30kB", "--json"
        ).stdout
    )["forecast"]
    run("tie", model, tmp_path / "out", "--max-shard-size", "30kB")
    written = [name for name in files(tmp_path / "out") if name.startswith("onnx/")]
    assert sorted(forecast["file_bytes"]) == written
    assert [name for name in written if "_data" in name] == [
        "onnx/model.onnx_data",
        "onnx/model.onnx_data_1",
        "onnx/model.onnx_data_2",
    ]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {"model.onnx": 3}


def test_it_reads_its_own_folders(tmp_path: Path, model: Path) -> None:
    run("tie", model, tmp_path / "first")
    run("rtn", tmp_path / "first" / "onnx" / "model.onnx", tmp_path / "second")
    run("rtn", tmp_path / "first", tmp_path / "third")
    for name in ("second", "third"):
        assert "onnx/model_q4.onnx" in files(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["transformers.js_config"]["use_external_data_format"] == {"model_q4.onnx": 1}


def test_float16_caches_are_said_to_be(tmp_path: Path) -> None:
    path = handmade.decoder(tmp_path / "in" / "model_fp16.onnx", edit=cached(TensorProto.FLOAT16))
    configured(path.parent)
    run("rtn", path, tmp_path / "out")
    assert "onnx/model_q4f16.onnx" in files(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["transformers.js_config"]["kv_cache_dtype"] == {"q4f16": "float16"}
    graph = onnx.load(tmp_path / "out" / "onnx" / "model_q4f16.onnx", load_external_data=False).graph
    for value in (graph.input[1], graph.output[1]):
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert dims == ["batch_size", 2, "past", 16]


def test_a_symbolic_head_size_becomes_a_number(tmp_path: Path) -> None:
    for file in GENAI.iterdir():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / file.name).write_bytes(file.read_bytes())
    configured(tmp_path / "in")
    run("tie", tmp_path / "in", tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "onnx" / "model_q4.onnx", load_external_data=False).graph
    sizes = {v.name: v.type.tensor_type.shape.dim[3].dim_value for v in (*graph.input, *graph.output) if "." in v.name}
    assert len(sizes) == 8
    assert set(sizes.values()) == {16}
    genai = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["filename"] == "onnx/model_q4.onnx"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (cached(TensorProto.FLOAT, name="past_key_self_0"), "knows no cache called past_key_self_0"),
        (cached(TensorProto.FLOAT, size="d"), "head size is a symbol"),
        (cached(TensorProto.BFLOAT16), "bfloat16"),
    ],
)
def test_what_transformers_js_cannot_load_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    path = handmade.decoder(tmp_path / "in" / "model.onnx", edit=edit)
    configured(path.parent)
    result = call("run", "tie", path, "-o", tmp_path / "out", "--client", "transformers.js")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "message"), [(None, "holds no config.json"), ("[]", "no JSON object"), ("{", "JSON")])
def test_a_config_is_needed(tmp_path: Path, model: Path, text: str | None, message: str) -> None:
    config = model.parent / "config.json"
    config.unlink() if text is None else config.write_text(text)
    result = call("run", "tie", model, "-o", tmp_path / "out", "--client", "transformers.js")
    assert result.exit_code == 1
    assert message in result.stderr


def test_two_models_of_one_name_are_refused(tmp_path: Path, model: Path) -> None:
    handmade.decoder(model.parent / "model_fp16.onnx", data=None)
    result = call("run", "tie", model.parent, "-o", tmp_path / "out", "--client", "transformers.js")
    assert result.exit_code == 2
    assert "model.onnx, model_fp16.onnx: would all be called model.onnx" in result.stderr


def test_a_config_of_genai_names_the_one_model_there_is(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for file in GENAI.iterdir():
        (source / file.name.replace("model.onnx", "small.onnx", 1)).write_bytes(file.read_bytes())
    (source / "small.onnx.data").rename(source / "model.onnx.data")
    original = json.loads((source / "genai_config.json").read_text())
    assert call("run", "tie", source, "-o", tmp_path / "out").exit_code == 0
    mended = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert mended["model"]["decoder"]["filename"] == "small.onnx"
    mended["model"]["decoder"]["filename"] = original["model"]["decoder"]["filename"]
    assert mended == original


def test_a_config_of_genai_that_is_right_stays_as_it_is(tmp_path: Path) -> None:
    assert call("run", "tie", GENAI, "-o", tmp_path / "out").exit_code == 0
    name = "genai_config.json"
    assert (tmp_path / "out" / name).read_bytes() == (GENAI / name).read_bytes()
