"""The pass pack-matmul: the same numbers, and the way back from unpack-matmul bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from attention_model import Layer
from exports import exported, feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from language_model import run
from packing import ops, quantized, same_outputs, tailor, tensors
from stored import ranges

if TYPE_CHECKING:
    from pathlib import Path


def name_of(layer: Layer) -> str:
    return f"{layer.multiply}-{layer.divide}-{layer.opset}-{layer.order}"


FORMS = [
    Layer(),
    Layer(bias=True, opset=12),
    Layer(divide="gqa", bias=True, rotary=True),
    Layer(divide="slice", multiply="fused", bias=True),
    Layer(divide="heads", multiply="transpose"),
    Layer(multiply="gemm", bias=True, dtype="float16"),
]


@pytest.mark.parametrize("layer", FORMS, ids=name_of)
def test_unpack_then_pack_restores_the_bytes(tmp_path: Path, layer: Layer) -> None:
    source = layer.save(tmp_path / "m.onnx")
    tailor(source, tmp_path / "parts", "unpack-matmul")
    (report,) = tailor(tmp_path / "parts" / "m.onnx", tmp_path / "packed", "pack-matmul")
    assert [sorted(change.details["parts"]) for change in report.changes] == [["k", "q", "v"], ["gate", "up"]]
    restored(source, tmp_path / "packed" / "m.onnx")
    same_outputs(layer, source, tmp_path / "packed" / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "packed" / "m.onnx"))


@pytest.mark.parametrize(
    "layer", [*FORMS, Layer(order="vqk")], ids=lambda x: f"{x.multiply}-{x.divide}-{x.opset}-{x.order}"
)
def test_both_in_one_recipe_move_nothing(tmp_path: Path, layer: Layer) -> None:
    source = layer.save(tmp_path / "m.onnx")
    tailor(source, tmp_path / "out", "unpack-matmul", "pack-matmul")
    restored(source, tmp_path / "out" / "m.onnx")


def restored(before: Path, after: Path) -> None:
    """Every weight has its name, its shape and its bytes again."""
    wanted, found = tensors(before), tensors(after)
    for name, value in wanted.items():
        if "_proj" in name:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    own = [name for name in found if name.endswith(("weight", "bias", "_Q4", "scales", "zero_points"))]
    assert not [name for name in own if "q_proj" in name or ("up_proj" in name and "gate_up" not in name)]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    bits=st.sampled_from([2, 4, 8]),
    columns=st.integers(17, 90),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2), (5, 5)]),
    size=st.sampled_from([8, 16, 24]),
    inner=st.integers(5, 40),
    bias=st.booleans(),
    symmetric=st.booleans(),
    flat=st.booleans(),
    divide=st.sampled_from(["split", "slice", "heads", "gqa"]),
    apart=st.booleans(),
)
def test_quantized_projections_are_restored(
    tmp_path_factory: pytest.TempPathFactory, symmetric: bool, heads: tuple[int, int], apart: bool, **form: Any
) -> None:
    """`apart`: the parts were written to their own places in between."""
    layer = quantized(Layer(heads=heads[0], kv_heads=heads[1], **form), symmetric=symmetric)
    folder = tmp_path_factory.mktemp("m")
    source = layer.save(folder / "m.onnx")
    if apart:
        tailor(source, folder / "parts", "unpack-matmul")
        (report,) = tailor(folder / "parts" / "m.onnx", folder / "out", "pack-matmul")
    else:
        _, report = tailor(source, folder / "out", "unpack-matmul", "pack-matmul")
    assert len(report.changes) == 2, report.skips
    restored(source, folder / "out" / "m.onnx")
    same_outputs(layer, source, folder / "out" / "m.onnx", within=1e-5)


def test_packed_for_the_operator_that_takes_it_whole(tmp_path: Path) -> None:
    source = Layer(divide="gqa").save(tmp_path / "m.onnx")
    tailor(source, tmp_path / "parts", "unpack-matmul")
    (report,) = tailor(tmp_path / "parts" / "m.onnx", tmp_path / "packed", "pack-matmul")
    assert report.changes[0].details["divided_by"] == "GroupQueryAttention"
    graph = onnx.load(tmp_path / "packed" / "m.onnx", load_external_data=False).graph
    attention = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
    assert [bool(name) for name in attention.input[:3]] == [True, False, False]
    assert ops(tmp_path / "packed" / "m.onnx").count("Split") == 1  # that of gate and up


@pytest.mark.parametrize("method", ["rtn", "k_quant"])
def test_pack_before_and_after_quantize_gives_the_same_bytes(tmp_path: Path, method: str) -> None:
    """Also where the parts lie apart in their file, so that the packed weight is read from several places."""
    tailor(Layer(bias=True, columns=72).save(tmp_path / "m.onnx"), tmp_path / "parts", "unpack-matmul")
    source = tmp_path / "parts" / "m.onnx"
    quantizing = f"quantize: {{method: {method}, block_size: 16}}"
    tailor(source, tmp_path / "before", "pack-matmul", quantizing)
    tailor(source, tmp_path / "after", quantizing, "pack-matmul")
    first, second = (tensors(tmp_path / name / "m.onnx") for name in ("before", "after"))
    for module in ("self_attn.qkv_proj", "mlp.gate_up_proj"):
        for kind in ("weight_q4", "weight_scales", "weight_zero_points"):
            name = f"model.layers.3.{module}.{kind}"
            np.testing.assert_array_equal(first[name], second[name])
            assert len(first[name])


def test_parts_of_different_bits_stay_apart_with_the_reason(tmp_path: Path) -> None:
    source = Layer().save(tmp_path / "m.onnx")
    _, _, report = tailor(
        source, tmp_path / "out", "unpack-matmul", "quantize: {nodes: {'role:v': 8, 'role:up': skip}}", "pack-matmul"
    )
    assert [skip.reason for skip in report.skips] == [
        "q has bits 4 and v 8",
        "gate is a MatMulNBits and up a MatMul",
    ]


@pytest.mark.parametrize("same", [False, True])
def test_columns_in_another_order_stay_apart(tmp_path: Path, same: bool) -> None:
    """`g_idx` of MatMulNBits says which scale each column has; one operator has one."""
    layer = quantized(Layer(bits=4, columns=64, block_size=32))
    tailor(layer.save(tmp_path / "m.onnx"), tmp_path / "parts", "unpack-matmul")
    path = tmp_path / "parts" / "m.onnx"
    model = onnx.load(path, load_external_data=False)
    for number, node in enumerate(n for n in model.graph.node if n.op_type == "MatMulNBits" and "v_proj" not in n.name):
        name = "order" if same else f"order{number}"
        node.input.extend([""] * (4 - len(node.input)) + [name])
        if not same or number == 0:
            order = np.arange(64, dtype=np.int32) // 32
            model.graph.initializer.append(onnx.numpy_helper.from_array(order[:: 1 - 2 * (number % 2)].copy(), name))
    path.write_bytes(model.SerializeToString())
    (report,) = tailor(path, tmp_path / "packed", "pack-matmul")
    assert ["gate_up" in change.what or "gate" in str(change.details) for change in report.changes] == [True] * same
    assert all("have different inputs beside their operands" in skip.reason for skip in report.skips)
    same_outputs(layer, path, tmp_path / "packed" / "m.onnx")


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    source = Layer(bias=True).save(tmp_path / "m.onnx")
    (report,) = tailor(source, tmp_path / "out", "pack-matmul")
    assert not report.changes
    assert "read one activation apart" in report.skips[0].reason


@pytest.mark.parametrize("name", ["genai-phi4mini-tiny-fp32-cpu-untied", "dynamo-phi4mini-tiny-fp16"])
def test_a_real_export_comes_back(tmp_path: Path, name: str) -> None:
    source = exported(name, tmp_path)
    tailor(source, tmp_path / "parts", "unpack-matmul")
    (report,) = tailor(tmp_path / "parts" / "model.onnx", tmp_path / "packed", "pack-matmul")
    out = tmp_path / "packed" / "model.onnx"
    assert {tuple(sorted(change.details["parts"])) for change in report.changes} == {("k", "q", "v"), ("gate", "up")}
    assert len(report.changes) == 4
    if "dynamo" in name:  # packed again as it was; the builder itself leaves gate and up apart
        before = sorted(length for _, length in ranges(source).values() if length >= 1024)
        assert sorted(length for _, length in ranges(out).values()) == before
    given_ = feeds(source, 7)
    for output, value in run(source, given_).items():
        np.testing.assert_array_equal(run(out, given_)[output], value, err_msg=output)
