"""Mixtures of experts: MoE becomes QMoE, experts that are many projections are named by role, routers stay float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from language_model import run
from onnx import TensorProto, helper, numpy_helper
from packing import tailor, tensors
from stored import unpack

from onnx_tailor import pipeline, recipe
from onnx_tailor.calibration.bit_budget import FLOAT, Form
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.candidates import find_candidates
from onnx_tailor.graph.meaning.mixtures import find_mixtures
from onnx_tailor.passes.base import Circumstances
from onnx_tailor.passes.quantize import Quantize
from onnx_tailor.passes.weigh import weigh_all
from onnx_tailor.progress import Silent
from onnx_tailor.report import Change
from onnx_tailor.targets import TARGETS
from onnx_tailor.verify.compare import compare
from onnx_tailor.verify.tokens import random_tokens

Array = np.ndarray[Any, Any]
EXPERTS, HIDDEN, INNER, TOKENS = 4, 64, 48, 6
NAME = "/model/layers.1/moe/MoE"
BUILT = Path(__file__).parents[1] / "fixtures" / "exports" / "genai-gpt-oss-fp32" / "model.onnx"
VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])


def weights(dtype: str, *, fused: bool) -> dict[str, Array]:
    random = np.random.default_rng(23)
    rows = 2 * INNER if fused else INNER
    shapes: dict[str, tuple[int, ...]] = {
        "router.weight": (HIDDEN, EXPERTS),
        "experts.fc1": (EXPERTS, rows, HIDDEN),
        "experts.fc1.bias": (EXPERTS, rows),
        "experts.fc2": (EXPERTS, HIDDEN, INNER),
        "experts.fc2.bias": (EXPERTS, HIDDEN),
    }
    return {name: (random.standard_normal(shape, np.float32) / 6).astype(dtype) for name, shape in shapes.items()}


def mixture(path: Path, values: dict[str, Array], **attributes: Any) -> Path:
    """x [tokens, hidden] -> router -> MoE -> y."""
    kind = helper.np_dtype_to_tensor_dtype(values["experts.fc1"].dtype)
    info = helper.make_tensor_value_info
    names = ["x", "scores", "experts.fc1", "experts.fc1.bias", "experts.fc2", "experts.fc2.bias"]
    names += [name for name in values if name == "experts.fc3"]
    nodes = [
        helper.make_node("MatMul", ["x", "router.weight"], ["scores"], name="/model/layers.1/moe/router/MatMul"),
        helper.make_node("MoE", names, ["y"], name=NAME, domain="com.microsoft", **{"k": 2, **attributes}),
    ]
    graph = helper.make_graph(
        nodes,
        "mixture",
        [info("x", kind, ["tokens", HIDDEN])],
        [info("y", kind, ["tokens", HIDDEN])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path


def dequantized(stored: dict[str, Array], name: str, bits: int, block: int) -> Array:
    """Return (code - zero point) * scale from what was stored, with nothing of onnx-tailor's."""
    codes, scales = stored[f"{name}_q{bits}"], stored[f"{name}_scales"]
    experts, rows, blocks = scales.shape
    values = unpack(codes.reshape(experts * rows, -1), bits).reshape(experts, rows, blocks, block).astype(np.float32)
    zero: Array = np.full(scales.shape, 1 << bits - 1, np.float32)
    if f"{name}_zero_points" in stored:
        packed = stored[f"{name}_zero_points"].reshape(experts * rows, -1)
        zero = unpack(packed, bits)[:, :blocks].reshape(scales.shape).astype(np.float32)
    found: Array = ((values - zero[..., None]) * scales.astype(np.float32)[..., None]).reshape(experts, rows, -1)
    return found


def feeds(dtype: str) -> dict[str, Array]:
    return {"x": np.random.default_rng(29).standard_normal((TOKENS, HIDDEN), np.float32).astype(dtype)}


FORMS = [
    pytest.param({"activation_type": "relu"}, id="relu"),
    pytest.param({"activation_type": "silu", "normalize_routing_weights": 1}, id="silu-normalized"),
    pytest.param({"activation_type": "gelu", "k": 1}, id="gelu-top1"),
    pytest.param(
        {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0},
        id="swiglu",
    ),
]


@pytest.mark.parametrize("attributes", FORMS)
@pytest.mark.parametrize(
    ("bits", "symmetric", "dtype"),
    [(4, False, "float32"), (4, True, "float32"), (8, False, "float32"), (2, False, "float32"), (4, False, "float16")],
)
def test_qmoe_computes_with_the_stored_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], bits: int, symmetric: bool, dtype: str
) -> None:
    """INNER is three blocks: an odd number, so that a row's last byte of 4-bit zero points is half empty."""
    # With 8 bits the kernel would round the activations, which says nothing about the weights' layout.
    monkeypatch.setenv("ORT_QMOE_CPU_QNBIT_GEMM", "fp32")
    values = weights(dtype, fused="swiglu_fusion" in attributes)
    source = mixture(tmp_path / "m.onnx", values, **attributes)
    options = f"{{bits: {bits}, block_size: 16, symmetric: {str(symmetric).lower()}}}"
    (report,) = tailor(source, tmp_path / "out", f"quantize: {options}")
    (change,) = report.changes
    assert (change.where, change.details["role"], change.details["layer"]) == (NAME, "expert", 1)
    if dtype == "float32":  # in float16 this router is too small to be a weight of its own
        assert "a router decides which experts run" in report.skips[0].reason
    out = tmp_path / "out" / "m.onnx"
    stored = tensors(out)
    assert ("experts.fc1_zero_points" in stored) != symmetric
    changed = {name: dequantized(stored, name, bits, 16).astype(dtype) for name in ("experts.fc1", "experts.fc2")}
    for name, value in changed.items():
        assert 0 < np.abs(value.astype(np.float32) - values[name].astype(np.float32)).max() < 0.5
    # In float32: without normalization onnxruntime 1.31's float16 MoE yields zeros or worse on the CPU.
    exact = {name: value.astype(np.float32) for name, value in (values | changed).items()}
    reference = mixture(tmp_path / "reference.onnx", exact, **attributes)
    given = {name: value.astype(np.float32) for name, value in feeds(dtype).items()}
    wanted, found = run(reference, given)["y"], run(out, feeds(dtype))["y"]
    limit = 3e-6 if dtype == "float32" else 4e-3
    np.testing.assert_allclose(found, wanted, rtol=0, atol=limit * np.abs(wanted).max())


def test_bytes_are_counted_as_weights(tmp_path: Path) -> None:
    source = mixture(tmp_path / "m.onnx", weights("float32", fused=False))
    tailor(source, tmp_path / "out", "quantize: {block_size: 16}")
    before, after = (pipeline.inspect(each).files[0].size for each in (source, tmp_path / "out" / "m.onnx"))
    assert after.parameters == before.parameters
    assert after.weight_bytes < before.weight_bytes / 4
    (again,) = tailor(tmp_path / "out" / "m.onnx", tmp_path / "twice", "quantize: {block_size: 16}")
    assert not again.changes


def test_float_zero_points_are_not_for_qmoe(tmp_path: Path) -> None:
    source = mixture(tmp_path / "m.onnx", weights("float32", fused=False))
    (report,) = tailor(source, tmp_path / "out", "quantize: {block_size: 16, zero_points: float}")
    (change,) = report.changes
    assert "zero points stay integers, since QMoE takes no others" in change.what
    assert tensors(tmp_path / "out" / "m.onnx")["experts.fc1_zero_points"].dtype == np.uint8


REFUSED = [
    ({"use_sparse_mixer": 1}, "{block_size: 16}", "mixes the experts in another way"),
    ({"activation_type": "swiglu", "swiglu_fusion": 2}, "{block_size: 16}", "its SwiGLU is not interleaved"),
    ({}, "{block_size: 32}", "the inner size 48 is no multiple of 32"),
    ({}, "{block_size: 16, nodes: {'role:expert': skip}}", "left in float, as `nodes` says"),
]


@pytest.mark.parametrize(("attributes", "options", "reason"), REFUSED)
def test_what_is_not_shown_to_be_right_is_left(
    tmp_path: Path, attributes: dict[str, Any], options: str, reason: str
) -> None:
    source = mixture(tmp_path / "m.onnx", weights("float32", fused="swiglu_fusion" in attributes), **attributes)
    (report,) = tailor(source, tmp_path / "out", f"quantize: {options}")
    assert not report.changes
    assert reason in {skip.where: skip.reason for skip in report.skips}[NAME]


def test_a_third_matrix_is_left(tmp_path: Path) -> None:
    values = weights("float32", fused=False)
    values["experts.fc3"] = values["experts.fc1"]
    (report,) = tailor(mixture(tmp_path / "m.onnx", values), tmp_path / "out", "quantize: {block_size: 16}")
    assert "FC3" in {skip.where: skip.reason for skip in report.skips}[NAME]


def test_a_router_is_quantized_where_a_rule_says_so(tmp_path: Path) -> None:
    source = mixture(tmp_path / "m.onnx", weights("float32", fused=False))
    (report,) = tailor(source, tmp_path / "out", "quantize: {block_size: 16, nodes: {'role:router': 8}}")
    assert {change.details["role"]: change.details["bits"] for change in report.changes} == {"router": 8, "expert": 4}


def dense(path: Path, *, stacked: bool = False) -> Path:
    """Experts as projections of their own, weighted by the router's two best; no name tells anything."""
    random = np.random.default_rng(31)
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def store(value: Array) -> str:
        initializers.append(numpy_helper.from_array(value, f"w{len(initializers)}"))
        return initializers[-1].name

    def node(op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"v{len(nodes)}_{i}" for i in range(outputs)]
        nodes.append(helper.make_node(op, inputs, names, name=f"n{len(nodes)}", **attributes))
        return names

    def matrix(*shape: int) -> str:
        return store((random.standard_normal(shape, np.float32) / 6).astype(np.float32))

    (scores,) = node("MatMul", ["x", matrix(HIDDEN, EXPERTS)])
    best, places = node("TopK", [scores, store(np.array([2]))], 2, axis=-1)
    (shares,) = node("Softmax", [best], axis=-1)
    (nothing,) = node("Mul", [scores, store(np.zeros((1,), np.float32))])
    (mixed,) = node("ScatterElements", [nothing, places, shares], axis=-1)
    total = "x"
    for expert in range(EXPERTS):
        (gate,) = node("MatMul", ["x", matrix(HIDDEN, INNER)])
        (up,) = node("MatMul", ["x", matrix(HIDDEN, INNER)])
        (active,) = node("Mul", [gate, node("Sigmoid", [gate])[0]])
        (inner,) = node("Mul", [active, up])
        (result,) = node("MatMul", [inner, matrix(INNER, HIDDEN)])
        (share,) = node("Slice", [mixed, *(store(np.array([n])) for n in (expert, expert + 1, -1))])
        (weighted,) = node("Mul", [result, share])
        (total,) = node("Add", [total, weighted])
    if stacked:
        (deep,) = node("Unsqueeze", [total, store(np.array([0]))])
        (all_,) = node("MatMul", [deep, matrix(EXPERTS, HIDDEN, HIDDEN)])
        (total,) = node("ReduceSum", [all_, store(np.array([0]))], keepdims=0)
    nodes[-1].output[0] = "y"
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "dense",
        [info("x", TensorProto.FLOAT, ["tokens", HIDDEN])],
        [info("y", TensorProto.FLOAT, ["tokens", HIDDEN])],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_experts_of_many_projections_are_named_by_role(tmp_path: Path) -> None:
    source = dense(tmp_path / "m.onnx")
    (report,) = tailor(source, tmp_path / "out", "quantize: {block_size: 16, bits: float, nodes: {'role:expert': 8}}")
    assert [change.details["role"] for change in report.changes] == ["expert"] * 3 * EXPERTS
    (router,) = [skip for skip in report.skips if skip.details["role"] == "router"]
    assert router.reason == "left in float, as `bits` says"
    (report,) = tailor(source, tmp_path / "all", "quantize: {block_size: 16}")
    (router,) = [skip for skip in report.skips if skip.details.get("role") == "router"]
    assert "a router decides" in router.reason
    wanted, found = run(source, feeds("float32"))["y"], run(tmp_path / "out" / "m.onnx", feeds("float32"))["y"]
    assert 0 < np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_stacked_experts_are_left_with_the_reason(tmp_path: Path) -> None:
    source = dense(tmp_path / "m.onnx", stacked=True)
    (report,) = tailor(source, tmp_path / "out", "quantize: {block_size: 16}")
    assert any("[4, 64, 64], a stack of matrices" in skip.reason for skip in report.skips)


def test_gate_and_up_of_experts_are_not_packed(tmp_path: Path) -> None:
    (report,) = tailor(dense(tmp_path / "m.onnx"), tmp_path / "out", "pack-matmul")
    assert not report.changes


@pytest.mark.skipif(VERSION < (1, 30), reason="GroupQueryAttention has no sliding_window_cache yet")
def test_a_mixture_of_the_genai_builder_is_quantized(tmp_path: Path) -> None:
    report = pipeline.run(recipe.of_passes([Quantize(bits=8)]), BUILT, tmp_path / "out")
    experts = [change for change in report.passes[0].changes if change.details["role"] == "expert"]
    assert [(change.details["layer"], change.what.split(",")[0]) for change in experts] == [(0, "QMoE"), (1, "QMoE")]
    compared = compare(BUILT, tmp_path / "out" / "model.onnx", random_tokens(384, windows=2, length=72))
    assert compared.kl_mean is not None
    assert 0 < compared.kl_mean < 3e-3  # its kernel rounds the activations to 8 bits as well


def test_automatic_bits_count_the_stacks_as_they_will_be_stored(tmp_path: Path) -> None:
    values = weights("float32", fused=False)
    source = mixture(tmp_path / "model.onnx", values, activation_type="gelu")
    options = Quantize(bits="auto", budget="5 bpw", block_size=16)
    model = load(source)
    circumstances = Circumstances(TARGETS["cpu"], tmp_path, Silent())
    stack = weigh_all(options, find_candidates(model), find_mixtures(model), {}, None, circumstances)
    assert [each.name for each in stack] == [NAME]
    for form in (Form(2, 16), Form(4, 16), Form(8, 16)):
        copy = load(source)
        explicit = Quantize(bits=form.bits, block_size=16)  # type: ignore[arg-type]
        (change,) = [c for c in explicit.apply(copy, TARGETS["cpu"]) if isinstance(c, Change)]
        assert stack[0].sizes[form] == change.bytes_after
        assert stack[0].sizes[FLOAT] == change.bytes_before
