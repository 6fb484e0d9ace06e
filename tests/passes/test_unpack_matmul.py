"""The pass unpack-matmul: the same numbers, the same bytes, and a reason wherever the parts are not certain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from attention_model import Layer
from exports import exported, feeds
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from language_model import run
from packing import ops, quantized, same_outputs, tailor, tensors

from onnx_tailor import pipeline

if TYPE_CHECKING:
    from pathlib import Path

FORMS = [
    Layer(),
    Layer(bias=True),
    Layer(order="kvq"),
    Layer(divide="slice", bias=True),
    Layer(divide="equal_split", kv_heads=4),
    Layer(divide="equal_split", kv_heads=4, opset=17),
    Layer(divide="split", opset=17),
    Layer(divide="heads", bias=True),
    Layer(divide="places", kv_heads=4),
    Layer(divide="unbind", kv_heads=4, bias=True),
    Layer(divide="gqa"),
    Layer(divide="gqa", bias=True, rotary=True),
    Layer(multiply="gemm", bias=True),
    Layer(multiply="gemm", divide="slice"),
    Layer(multiply="fused", bias=True),
    Layer(multiply="transpose", divide="gqa"),
    Layer(dtype="float16", bias=True),
    Layer(names=("attn.Wqkv", "mlp.Wi")),
]


@pytest.mark.parametrize("layer", FORMS, ids=lambda x: f"{x.multiply}-{x.divide}-{x.opset}-{x.order}-{x.dtype}")
def test_a_packed_float_projection_becomes_its_parts(tmp_path: Path, layer: Layer) -> None:
    source = layer.save(tmp_path / "m.onnx")
    (report,) = tailor(source, tmp_path / "out")
    out = tmp_path / "out" / "m.onnx"
    assert [set(change.details["parts"]) for change in report.changes] == [{"q", "k", "v"}, {"gate", "up"}]
    assert not report.skips
    assert not {"Split", "Slice"} & set(ops(out))
    onnx.checker.check_model(str(out))
    same_outputs(layer, source, out)


@pytest.mark.parametrize("multiply", ["matmul", "gemm", "transpose"])
def test_the_parts_hold_the_rows_of_the_packed_matrix(tmp_path: Path, multiply: Any) -> None:
    layer = Layer(multiply=multiply, bias=True, order="vqk")
    source = layer.save(tmp_path / "m.onnx")
    tailor(source, tmp_path / "out")
    stored, values, start = tensors(tmp_path / "out" / "m.onnx"), layer.weights(), 0
    for role, size in layer.sizes.items():
        weight = stored[f"model.layers.3.self_attn.{role}_proj.weight"]
        weight = weight.T if multiply == "matmul" else weight
        np.testing.assert_array_equal(weight, values["qkv"][start : start + size])
        np.testing.assert_array_equal(
            stored[f"model.layers.3.self_attn.{role}_proj.bias"], values["qkv.bias"][start : start + size]
        )
        start += size
    assert not [name for name in stored if "qkv" in name or "gate_up" in name]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    bits=st.sampled_from([2, 4, 8]),
    block_size=st.sampled_from([16, 32]),
    columns=st.integers(17, 90),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2), (5, 5)]),
    size=st.sampled_from([8, 16, 24]),
    inner=st.integers(5, 40),
    bias=st.booleans(),
    symmetric=st.booleans(),
    flat=st.booleans(),
    float_points=st.booleans(),
    divide=st.sampled_from(["split", "slice", "heads", "gqa"]),
)
def test_a_quantized_projection_is_divided_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, symmetric: bool, heads: tuple[int, int], **form: Any
) -> None:
    """Padded K, odd numbers of blocks, flat and unpacked zero points: each part holds the rows, in whole bytes."""
    assume(not (form["float_points"] and form["bits"] == 8))  # ONNX Runtime has no such kernel on the CPU
    layer = quantized(Layer(heads=heads[0], kv_heads=heads[1], **form), symmetric=symmetric)
    folder = tmp_path_factory.mktemp("m")
    source = layer.save(folder / "m.onnx")
    (report,) = tailor(source, folder / "out")
    assert len(report.changes) == 2, report.skips
    before, after = tensors(source), tensors(folder / "out" / "m.onnx")
    rows = sum(layer.sizes.values())
    for name, value in before.items():
        if "qkv_proj" in name:
            parts = [after[name.replace("qkv_proj", f"{role}_proj")] for role in layer.sizes]
            for part, size in zip(parts, layer.sizes.values(), strict=True):
                assert part.size * rows == value.size * size
            np.testing.assert_array_equal(np.concatenate(parts), value)
    same_outputs(layer, source, folder / "out" / "m.onnx", within=1e-5)


REFUSED = [
    (
        Layer(divide="interleaved", kv_heads=4),
        "interleaved: Split model.layers.3.self_attn.qkv_proj/MatMul_output_deep",
    ),
    (Layer(divide="stepped", kv_heads=4), "interleaved: Slice model.layers.3.self_attn.qkv_proj/MatMul_output_part_0"),
]


@pytest.mark.parametrize(("layer", "reason"), REFUSED)
def test_interleaved_parts_are_left_with_the_reason(tmp_path: Path, layer: Layer, reason: str) -> None:
    source = layer.save(tmp_path / "m.onnx")
    (report,) = tailor(source, tmp_path / "out")
    assert "q" not in {role for change in report.changes for role in change.details["parts"]}
    assert reason in report.skips[0].reason
    same_outputs(layer, source, tmp_path / "out" / "m.onnx")


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    source = Layer(bias=True, divide="gqa").save(tmp_path / "m.onnx")
    tailor(source, tmp_path / "one")
    (report,) = tailor(tmp_path / "one" / "m.onnx", tmp_path / "two")
    assert not report.changes
    assert [skip.reason for skip in report.skips] == ["no projection of the model is packed"]
    assert (tmp_path / "one" / "m.onnx").read_bytes() == (tmp_path / "two" / "m.onnx").read_bytes()
    assert (tmp_path / "one" / "m.onnx.data").read_bytes() == (tmp_path / "two" / "m.onnx.data").read_bytes()


@pytest.mark.parametrize("method", ["rtn", "k_quant"])
def test_before_or_after_quantize_gives_the_same_bytes(tmp_path: Path, method: str) -> None:
    layer = Layer(bias=True, columns=72)
    source = layer.save(tmp_path / "m.onnx")
    quantizing = f"quantize: {{method: {method}, block_size: 16}}"
    tailor(source, tmp_path / "before", "unpack-matmul", quantizing)
    (divided, _), (whole,) = (
        tailor(source, tmp_path / "after", quantizing, "unpack-matmul"),
        tailor(source, tmp_path / "packed", quantizing),
    )
    for mine, other in zip(divided.changes, whole.changes, strict=True):  # the errors of all parts together
        assert mine.details["relative_error"] == pytest.approx(other.details["relative_error"], rel=1e-5)
    tailor(tmp_path / "packed" / "m.onnx", tmp_path / "twice")
    first, second, third = (tensors(tmp_path / name / "m.onnx") for name in ("before", "after", "twice"))
    for role in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up"):
        for kind in ("q4", "scales", "zero_points"):
            name = f"model.layers.3.{role}_proj.weight_{kind}"
            np.testing.assert_array_equal(first[name], second[name])
            np.testing.assert_array_equal(first[name], third[name])
    same_outputs(layer, tmp_path / "before" / "m.onnx", tmp_path / "after" / "m.onnx")
    same_outputs(layer, tmp_path / "packed" / "m.onnx", tmp_path / "after" / "m.onnx")


def test_roles_reach_the_parts(tmp_path: Path) -> None:
    source = Layer(columns=96).save(tmp_path / "m.onnx")
    roles = "quantize: {bits: float, block_size: 16, nodes: {'role:v': 8, 'role:up': {bits: 4, layers: '3'}}}"
    _, report = tailor(source, tmp_path / "out", "unpack-matmul", roles)
    assert {change.details["role"]: change.details["bits"] for change in report.changes} == {"v": 8, "up": 4}


EXPORTS = {
    "genai-phi4mini-tiny-fp32-cpu-untied": ({"q", "k", "v"},),
    "dynamo-phi4mini-tiny-fp16": ({"q", "k", "v"}, {"gate", "up"}),
    "optimum-gpt2-tiny-fp32": ({"q", "k", "v"},),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_a_real_export_computes_the_same_bits(tmp_path: Path, name: str) -> None:
    source = exported(name, tmp_path)
    (report,) = tailor(source, tmp_path / "out")
    out, layers = tmp_path / "out" / "model.onnx", 3 if "gpt2" in name else 2
    found = [set(change.details["parts"]) for change in report.changes]
    assert found == list(EXPORTS[name]) * layers
    assert not report.skips
    lengths = ((7, 0), (2, 0)) if "dynamo" in name else ((7, 0), (1, 6))
    for length, past in lengths:
        given_ = feeds(source, length, past)
        wanted, results = run(source, given_), run(out, given_)
        for output, value in wanted.items():
            np.testing.assert_array_equal(results[output], value, err_msg=output)
            assert np.isfinite(value).all()
    (again,) = tailor(out, tmp_path / "again")
    assert not again.changes


@pytest.mark.parametrize("name", EXPORTS)
def test_role_and_layer_of_each_part_are_known_afterwards(tmp_path: Path, name: str) -> None:
    source = exported(name, tmp_path)
    tailor(source, tmp_path / "out")
    (inspection,) = pipeline.inspect(tmp_path / "out" / "model.onnx").files
    places = {(each["role"], each["layer"]) for each in inspection.projections}
    layers = range(3 if "gpt2" in name else 2)
    assert places >= {(role, layer) for role in "qkv" for layer in layers}
    assert "qkv" not in {role for role, _ in places}


def test_k_quant_mixed_promotes_the_parts(tmp_path: Path) -> None:
    source = exported("dynamo-phi4mini-tiny-fp16", tmp_path)
    _, report = tailor(source, tmp_path / "out", "unpack-matmul", "quantize: {method: k_quant_mixed}")
    bits = {(change.details["role"], change.details["bits"]) for change in report.changes}
    assert {("q", 4), ("k", 4), ("v", 8), ("down", 8), ("gate", 4), ("up", 4), ("lm_head", 8)} <= bits
    assert ("q", 8) not in bits
