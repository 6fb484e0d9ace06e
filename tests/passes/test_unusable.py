"""Weights that no rule can quantize: each is told, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnx_tailor import pipeline, recipe
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.file.size import measure

if TYPE_CHECKING:
    from pathlib import Path

K = 64
FORMS = {
    "y = MatMul(W, t)": "its weight W is its first operand, and quantized operators take it as the second",
    'y = Einsum<equation = "nk,bks->bns">(W, t)': "its weight W is its first operand",
    "a = Slice(W, begin, end, axis) y = MatMul(x, a)": "it is computed by Slice, of the stored W; fold constants",
    "a = Mul(W, W) b = Transpose(a) y = MatMul(x, b)": "it is computed by Mul, of the stored W; fold constants",
    "y = com.microsoft.Attention<num_heads = 4>(x, Q, B)": "Attention reads Q itself, and takes no codes",
    "y = Conv(t, C)": "a convolution by C, which no operator takes in blocks of few bits",
}


def skips(path: Path, out: Path) -> dict[str, str]:
    chosen = recipe.of_passes([recipe.load("rtn").steps[1].pass_])
    return {skip.where: skip.reason for skip in pipeline.run(chosen, path, out).passes[0].skips}


def build(path: Path, body: str, *, fed: bool = False) -> Path:
    text = f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    model (float[b, s, {K}] x{f", float[{K}, {K}] W" if fed else ""}) => (float[b, u, v] y)
    <float[{K}, {K}] W, float[{K}, {K}, 1] C, int64[1] begin, int64[1] end, int64[1] axis, float S,
     float[{K}, {3 * K}] Q, float[{3 * K}] B, uint8[{K}, {K}] I>
    {{ t = Transpose<perm = [0, 2, 1]>(x) {body} }}"""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    values = {name: random.standard_normal((K, K, 1)[: 2 + (name == "C")], np.float32) for name in ("W", "C")}
    numbers = {name: np.array([value], np.int64) for name, value in (("begin", 0), ("end", 32), ("axis", 1))}
    values |= {"S": np.array(0.1, np.float32), "I": np.ones((K, K), np.uint8)}
    values |= {"Q": random.standard_normal((K, 3 * K), np.float32), "B": np.zeros(3 * K, np.float32)}
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in (values | numbers).items())
    model.graph.node[-1].name = "last"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("body", FORMS)
def test_each_is_told(tmp_path: Path, body: str) -> None:
    assert FORMS[body] in skips(build(tmp_path / "m.onnx", body), tmp_path / "out")["last"]


def test_a_weight_that_a_caller_may_replace(tmp_path: Path) -> None:
    path = build(tmp_path / "m.onnx", "y = MatMul(x, W)", fed=True)
    assert skips(path, tmp_path / "out") == {
        "last": "its weight W is an input of the graph too, so that a caller may give another"
    }


def test_products_of_integers_are_quantized_already(tmp_path: Path) -> None:
    body = "q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, I) y = Cast<to = 1>(i)"
    path = build(tmp_path / "m.onnx", body)
    assert skips(path, tmp_path / "out") == {"m.onnx": "a projection is quantized already and stays as it is"}
    assert measure([load(path)], 0).parameters >= K * K


def test_activations_behind_dequantizelinear_are_no_weights(tmp_path: Path) -> None:
    body = "q = QuantizeLinear(t, S) d = DequantizeLinear(q, S) y = MatMul(x, d)"
    assert skips(build(tmp_path / "m.onnx", body), tmp_path / "out") == {}


def test_projections_and_products_of_activations_are_not_told(tmp_path: Path) -> None:
    body = "a = MatMul(x, W) s = MatMul(a, t) y = Mul(s, s)"
    assert skips(build(tmp_path / "m.onnx", body), tmp_path / "out") == {}
