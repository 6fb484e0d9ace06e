"""Odd but valid models through every command: what they compute is the same before and after, in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import odd_models
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from onnx_tailor.cli import app

IDS = np.arange(12, dtype=np.int64).reshape(2, 6)

VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def outputs(path: Path) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input_ids": IDS}), strict=True))


@pytest.fixture(params=odd_models.ODD)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "empty" and VERSION < (1, 31):
        pytest.skip("ONNX Runtime before 1.31 aborts on a weight without elements")
    return odd_models.write(tmp_path / "in" / "model.onnx", request.param)


def test_an_exact_recipe_changes_no_output(model: Path, tmp_path: Path) -> None:
    call("inspect", model)
    call("run", "tie", model, "-o", tmp_path / "out")
    found = outputs(tmp_path / "out" / "model.onnx")
    for name, wanted in outputs(model).items():
        if wanted.dtype == object:
            assert (wanted == found[name]).all()
        else:  # a Gemm may add in another order than a MatMul
            np.testing.assert_allclose(found[name], wanted, rtol=1e-3 if wanted.dtype == np.float16 else 1e-5)
    call("verify", model, tmp_path / "out", "--limit", "kl=1e-5")


def test_training_information_that_is_left_out_is_in_the_report(tmp_path: Path) -> None:
    path = odd_models.write(tmp_path / "in" / "model.onnx", "described")
    report = json.loads(call("run", "tie", path, "-o", tmp_path / "out", "--json"))
    (load,) = [each for each in report["passes"] if each["name"] == "load"]
    assert [change["where"] for change in load["changes"]] == ["training_info"]
    assert not onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).training_info
    assert "training_info: left out" in call("run", "tie", path, "--dry-run")


def test_quantization_reaches_the_weights(model: Path, tmp_path: Path) -> None:
    """In 8 bits the logits stay near; the table and both layers are quantized."""
    call("run", "unpack-k-quant", model, "-o", tmp_path / "out", "--set", "quantize.bits=8")
    wanted, found = outputs(model)["logits"].astype(float), outputs(tmp_path / "out" / "model.onnx")["logits"]
    assert 0 < np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    written = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert str(written).count('op_type: "MatMulNBits"') >= 2
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))
    CliRunner().invoke(app, ["lint", str(tmp_path / "out"), "--target", "cpu"])


def test_descriptions_stay(tmp_path: Path) -> None:
    model = odd_models.write(tmp_path / "in" / "model.onnx", "described")
    call("run", "tie", model, "-o", tmp_path / "out")
    written = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert (written.doc_string, written.graph.doc_string) == ("Ein Modell", "Ein Modell")
    assert ("author", "\u00fcnknown") in {(each.key, each.value) for each in written.metadata_props}
    assert next(each for each in written.graph.initializer if each.name == odd_models.TABLE).doc_string == "the table"
