"""Projections with an alpha, as ONNX Runtime's optimizer leaves them in the files that it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnx_tailor import pipeline, recipe

if TYPE_CHECKING:
    from pathlib import Path

V, K = 48, 64
FORMS = {
    "fused": "logits = com.microsoft.FusedMatMul<alpha = 0.25>(h, W)",
    "fused, as it lies": "logits = com.microsoft.FusedMatMul<alpha = 0.25, transB = 1>(h, E)",
    "gemm": "f = Reshape(h, flat) g = Gemm<alpha = -3.0>(f, W) logits = Reshape(g, whole)",
    "gemm with a bias": "f = Reshape(h, flat) g = Gemm<alpha = 0.5>(f, W, B) logits = Reshape(g, whole)",
}


def build(path: Path, body: str) -> Path:
    text = f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    model (int64[b, s] input_ids) => (float[b, s, {V}] logits)
    <float[{V}, {K}] E, float[{K}, {V}] W, float[{V}] B, int64[2] flat, int64[3] whole>
    {{ h = Gather(E, input_ids) {body} }}"""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    table = random.standard_normal((V, K), np.float32)
    values = {"E": table, "W": np.ascontiguousarray(table.T), "B": random.standard_normal(V, np.float32)}
    values |= {"flat": np.array([-1, K]), "whole": np.array([1, -1, V])}  # type: ignore[dict-item]
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("options", ["", "bits: 8", "bits: 8, format: qdq", "bits: 8, format: qdq, symmetric: true"])
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_factor_is_kept(tmp_path: Path, form: str, tie: bool, options: str) -> None:
    source, file = build(tmp_path / "model.onnx", FORMS[form]), tmp_path / "r.yaml"
    passes = ["tie-embeddings"] * tie + [f"quantize: {{{options}}}"] * bool(options) + ["pack-matmul"]
    file.write_text(f"recipe: 1\npasses: [{', '.join(passes)}]\n")
    report = pipeline.run(recipe.load(str(file)), source, tmp_path / "out")
    changes = [change.where for each in report.passes for change in each.changes]
    done = tie + bool(options)
    assert len([where for where in changes if where != "model.onnx"]) == done - (tie and form == "fused, as it lies")
    out = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(str(out))
    before, after = (
        ort.InferenceSession(str(p)).run(None, {"input_ids": np.array([[1, 7, 40]])})[0] for p in (source, out)
    )
    limit = 0.02 if options else 1e-5
    assert np.abs(before - after).max() <= limit * np.abs(before).max()
