"""`format: qdq` of quantize: standard operators alone, which hold the values that MatMulNBits would."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from language_model import Model, ids
from onnx import TensorProto, helper, numpy_helper

from onnx_tailor import pipeline, recipe
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.file.opset import obstacle, raise_opset
from onnx_tailor.report import Change, Skip

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_tailor.report import Report

SPEC = Model(columns=64, inner=80, vocabulary=300, bias=True)
TYPES = {(4, True): "INT4", (4, False): "UINT4", (8, True): "INT8", (8, False): "UINT8"}


def tailor(source: Path, out: Path, options: str, *, tie: bool = True) -> Report:
    file = source.with_name("recipe.yaml")
    first = "tie-embeddings, " if tie else ""
    file.write_text(f"recipe: 1\npasses: [{first}quantize: {{{options}}}]\n")
    return pipeline.run(recipe.load(str(file)), source, out)


def results(report: Report, kind: type) -> dict[str, Change | Skip]:
    """Return what became of each weight."""
    found = (*report.passes[-1].changes, *report.passes[-1].skips)
    return {each.where: each for each in found if isinstance(each, kind) and each.where != "model.onnx"}


def logits(path: Path, level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_DISABLE_ALL) -> np.ndarray:
    """Run as the file stands: at other levels ONNX Runtime fuses MatMulNBits out of it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    found: np.ndarray = ort.InferenceSession(str(path), options).run(["logits"], {"input_ids": ids(SPEC)})[0]
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("bits", "symmetric"), sorted(TYPES))
@pytest.mark.parametrize("options", ["block_size: 32", "block_size: 16, scales: float16, method: rtn"])
def test_the_values_are_those_of_matmulnbits(
    tmp_path: Path, dtype: str, bits: int, symmetric: bool, options: str
) -> None:
    """K is 64 and 80, the latter ends inside a block of 32; the table is tied."""
    source = replace(SPEC, dtype=dtype).save(tmp_path / "model.onnx")
    options += f", bits: {bits}, symmetric: {str(symmetric).lower()}"
    # The rows of a table are unsigned, so that it always has zero points.
    options += ', nodes: {"role:lm_head": {symmetric: false}}'
    nbits = tailor(source, tmp_path / "nbits", options)
    qdq = tailor(source, tmp_path / "qdq", options + ", format: qdq")
    out = tmp_path / "qdq" / "model.onnx"
    assert set(results(nbits, Change)) == set(results(qdq, Change))
    model = onnx.load(out)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    stored = {t.name: TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    weights = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(weights) == 7
    assert {stored[n.input[0]] for n in weights} == {TYPES[bits, symmetric], TYPES[bits, False]}
    first, second = logits(tmp_path / "nbits" / "model.onnx"), logits(out)
    limit = 2e-6 if dtype == "float32" else 5e-3  # the kernels add in another order
    assert np.abs(first.astype(np.float32) - second).max() <= limit * np.abs(first).max()
    assert nbits.after.parameters == qdq.after.parameters
    # It pads nothing, but has the shapes and powers of two that unpack the table's rows.
    assert 0.96 * nbits.after.weight_bytes < qdq.after.weight_bytes <= 1.01 * nbits.after.weight_bytes


def test_onnx_runtime_fuses_projections_into_its_own_operator(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", "format: qdq")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(tmp_path / "out" / "model.onnx"), options)
    found = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert found.count("MatMulNBits") == 6


def test_table_and_head_are_stored_once(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", 'format: qdq, bits: float, nodes: {"role:lm_head": 4}')
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    places = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer if "_q4" in t.name]
    assert len(places) == 2
    assert places[0]["offset"] == places[1]["offset"]


@pytest.mark.parametrize(
    ("spec", "options", "where", "reason"),
    [
        (SPEC, "bits: 2", "/lm_head/MatMul", "opset 21 has no 2 bits"),
        (SPEC, "block_size: 128", "/lm_head/MatMul", "no whole blocks of 128"),
        (replace(SPEC, columns=96), "block_size: 32", "/lm_head/MatMul", "3 blocks fill no whole bytes"),
        (replace(SPEC, inner=81), "", "/model/layers.0/mlp/up_proj/MatMul", "81 output features of 4 bits"),
    ],
)
def test_what_has_no_standard_form_stays_with_the_reason(
    tmp_path: Path, spec: Model, options: str, where: str, reason: str
) -> None:
    source = spec.save(tmp_path / "model.onnx")
    report = tailor(source, tmp_path / "out", f"format: qdq{', ' + options if options else ''}")
    found = results(report, Skip)[where]
    assert isinstance(found, Skip)
    assert reason in found.reason


def test_the_report_knows_each_weights_error(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    found = results(tailor(source, tmp_path / "qdq", "format: qdq"), Change).values()
    errors = [change.details["relative_error"] for change in found if isinstance(change, Change)]
    assert len(errors) == 7
    assert all(0.01 < error < 0.2 for error in errors)


def test_the_opset_stays_where_nothing_is_quantized(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    before = onnx.load(source, load_external_data=False)
    same = tailor(source, tmp_path / "same", 'format: qdq, nodes: {"*": float}')
    other = tailor(source, tmp_path / "other", "format: qdq")
    opsets = [
        onnx.load(tmp_path / out / "model.onnx", load_external_data=False).opset_import[0].version
        for out in ("same", "other")
    ]
    assert opsets == [before.opset_import[0].version, 21]
    assert not same.passes[-1].changes
    assert [change.what for change in other.passes[-1].changes if change.where == "model.onnx"] == [
        f"opset {opsets[0]} -> 21, as which its nodes mean the same"
    ]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("options", ["bits: 4", "bits: 8, symmetric: true", "bits: 4, scales: float16"])
def test_branches_of_an_if_hold_their_operands(tmp_path: Path, options: str, shared: bool) -> None:
    """ONNX Runtime's fusion finds no weight of an outer graph and refuses the file, but at a lower level."""
    weight = np.random.default_rng(3).standard_normal((64, 96), np.float32)
    info, branches = helper.make_tensor_value_info, {}
    for name, factor in (("then_branch", 1), ("else_branch", 1 if shared else 2)):
        own = [] if shared else [numpy_helper.from_array(weight * np.float32(factor), name)]
        product = helper.make_node("MatMul", ["x", "shared" if shared else name], [f"{name}.y"], name=f"{name}/MatMul")
        outputs = [info(f"{name}.y", TensorProto.FLOAT, ["n", 96])]
        branches[name] = helper.make_graph([product], name, [], outputs, own)
    graph = helper.make_graph(
        [helper.make_node("If", ["first"], ["logits"], **branches)],
        "g",
        [info("first", TensorProto.BOOL, []), info("x", TensorProto.FLOAT, ["n", 64])],
        [info("logits", TensorProto.FLOAT, ["n", 96])],
        [numpy_helper.from_array(weight, "shared")] if shared else [],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "model.onnx")
    report = tailor(tmp_path / "model.onnx", tmp_path / "qdq", f"format: qdq, {options}", tie=False)
    nbits = tailor(tmp_path / "model.onnx", tmp_path / "nbits", options, tie=False)
    assert report.after.weight_bytes == nbits.after.weight_bytes
    x = np.random.default_rng(4).standard_normal((3, 64), np.float32)
    for first in (True, False):
        feeds = {"first": np.array(first), "x": x}
        want = ort.InferenceSession(str(tmp_path / "nbits" / "model.onnx")).run(None, feeds)[0]
        got = ort.InferenceSession(str(tmp_path / "qdq" / "model.onnx")).run(None, feeds)[0]
        # fused with accuracy_level 4, which rounds activations to 8 bits
        assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


def model_of(path: Path, *nodes: onnx.NodeProto, opset: int) -> Path:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes), "g", [info("x", TensorProto.FLOAT, ["n", 4])], [info("y", TensorProto.FLOAT, None)]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("node", "opset", "reason"),
    [
        (helper.make_node("Relu", ["x"], ["y"]), 12, "below 13"),
        (helper.make_node("ReduceMean", ["x"], ["y"], axes=[1]), 14, "ReduceMean .* has no attribute axes"),
        (helper.make_node("Split", ["x"], ["y", "z"]), 13, "Split .* wants the number of its parts"),
        (helper.make_node("Softmax", ["x"], ["y"]), 13, None),
        (helper.make_node("ReduceMean", ["x"], ["y"]), 14, None),
        (helper.make_node("Cast", ["x"], ["y"], to=1), 13, None),
    ],
)
def test_an_opset_is_raised_where_nodes_mean_the_same(
    tmp_path: Path, node: onnx.NodeProto, opset: int, reason: str | None
) -> None:
    model = load(model_of(tmp_path / "m.onnx", node, opset=opset))
    found = obstacle(model, 21)
    if reason is None:
        assert found is None
        change = raise_opset(model, 21)
        assert change is not None
        assert f"opset {opset} -> 21" in change.what
        assert (model.opset, model.ir_model.ir_version) == (21, 10)
        assert raise_opset(model, 21) is None
    else:
        assert found is not None
        assert re.search(reason, found)
