"""Experts in a stack: a router's choice of quantized matrices is the choice of the float ones, dequantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnx_tailor import pipeline, recipe
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.inspection import inspect_model
from onnx_tailor.passes.quantize import Quantize
from onnx_tailor.quant import BlockFormat
from onnx_tailor.quant.quantize import dequantize, quantize
from onnx_tailor.report import Change, Report, Skip
from onnx_tailor.targets import TARGETS

EXPORTS = Path(__file__).parents[1] / "fixtures" / "exports"
EXPERTS, ROWS, COLUMNS = 5, 24, 96
Array = npt.NDArray[Any]


def stacked(path: Path, dtype: type[np.floating[Any]], chosen_by: str, columns: int = COLUMNS) -> Array:
    """Write y[t] = stack[router(x[t])] @ x[t] as torch.onnx does; return the stack."""
    random = np.random.default_rng(7)
    stack = random.standard_normal((EXPERTS, ROWS, columns)).astype(dtype)
    router = random.standard_normal((columns, EXPERTS)).astype(dtype)
    made, kind = helper.make_node, helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    integers = {"one": [1], "last": [-1], "flat": [-1]}
    if chosen_by == "GatherND":
        choose = [made("Unsqueeze", ["ids", "last"], ["deep"]), made("GatherND", ["stack", "deep"], ["own"])]
    else:
        choose = [made("Gather", ["stack", "ids"], ["own"], axis=0, name="choice")]
    nodes = [
        made("MatMul", ["x", "router"], ["scores"]),
        made("TopK", ["scores", "one"], ["best", "place"], axis=-1),
        made("Reshape", ["place", "flat"], ["ids"]),
        *choose,
        made("Unsqueeze", ["x", "last"], ["x3"]),
        made("MatMul", ["own", "x3"], ["y3"], name="bmm"),
        made("Squeeze", ["y3", "last"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stacked",
        [helper.make_tensor_value_info("x", kind, ["tokens", columns])],
        [helper.make_tensor_value_info("y", kind, ["tokens", ROWS])],
        [
            numpy_helper.from_array(stack, "stack"),
            numpy_helper.from_array(router, "router"),
            *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in integers.items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return stack


def tailor(model: Path, out: Path, target: str = "cpu", **options: Any) -> Report:
    return pipeline.run(recipe.of_passes([Quantize(**options)]), model, out, target=target)


def run(path: Path, x: Array) -> Array:
    return np.asarray(ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0])


@pytest.mark.parametrize("chosen_by", ["Gather", "GatherND"])
@pytest.mark.parametrize("target", ["cpu", "cuda", "webgpu", "portable"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_chosen_matrices_are_the_dequantized_ones(
    chosen_by: str, target: str, bits: int, symmetric: bool, tmp_path: Path
) -> None:
    stack = stacked(tmp_path / "m.onnx", np.float32, chosen_by)
    options: dict[str, Any] = {"bits": bits, "symmetric": symmetric, "method": "rtn"}
    report = tailor(tmp_path / "m.onnx", tmp_path / "out", target, **options)
    (change,) = [each for each in report.passes[0].changes if each.details["role"] == "expert"]
    assert change.details["shape"] == [EXPERTS, ROWS, COLUMNS]
    fmt = BlockFormat(bits, 32, symmetric, "float32")
    rows = quantize(stack.reshape(-1, COLUMNS), fmt, "rtn")
    values = dequantize(rows, COLUMNS, fmt).reshape(stack.shape)
    # The float model with the dequantized stack in its place: only the dequantization differs.
    reference = onnx.load(tmp_path / "m.onnx")
    (place,) = [each for each in reference.graph.initializer if each.name == "stack"]
    place.CopyFrom(numpy_helper.from_array(values.astype(np.float32), "stack"))
    onnx.save(reference, tmp_path / "reference.onnx")
    x = np.random.default_rng(1).standard_normal((9, COLUMNS)).astype(np.float32)
    wanted, found = run(tmp_path / "reference.onnx", x), run(tmp_path / "out" / "m.onnx", x)
    if "corr" in str(change.details["layout"]):  # an addition more
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    else:
        np.testing.assert_array_equal(found, wanted)
    assert report.after.parameters == report.before.parameters


def test_float_zero_points_are_not_for_stacks(tmp_path: Path) -> None:
    stacked(tmp_path / "m.onnx", np.float32, "Gather")
    files = []
    for points in ("float", "integer"):
        report = tailor(tmp_path / "m.onnx", tmp_path / points, zero_points=points)
        (change,) = [each for each in report.passes[0].changes if each.details["role"] == "expert"]
        assert ("zero points stay integers, since rows are gathered" in change.what) == (points == "float")
        assert change.details["zero_points"] == "integer"
        files.append({t.name: t for t in onnx.load(tmp_path / points / "m.onnx").graph.initializer})
    assert files[0] == files[1]


def test_rows_of_half_a_block_stay_with_the_reason(tmp_path: Path) -> None:
    stacked(tmp_path / "m.onnx", np.float32, "Gather", columns=80)
    skips = tailor(tmp_path / "m.onnx", tmp_path / "out").passes[0].skips
    (skip,) = [each for each in skips if each.where == "bmm"]
    assert skip.reason == "a stack of matrices whose rows of 80 are no whole blocks of 32"


def test_a_choice_along_another_axis_stays_with_the_reason(tmp_path: Path) -> None:
    stacked(tmp_path / "m.onnx", np.float32, "Gather")
    model = onnx.load(tmp_path / "m.onnx")
    (choice,) = [each for each in model.graph.node if each.name == "choice"]
    choice.attribute[0].CopyFrom(helper.make_attribute("axis", 1))
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "m.onnx")
    done = list(Quantize().apply(load(tmp_path / "m.onnx"), TARGETS["cpu"]))
    (skip,) = [each for each in done if isinstance(each, Skip) and each.where == "bmm"]
    assert skip.reason == "choice chooses its weights from stack in a way that no rule knows"


def test_a_real_mixture_is_quantized_but_for_its_routers(tmp_path: Path) -> None:
    source = EXPORTS / "dynamo-qwen3-moe-fp16" / "model.onnx"
    model = load(source)
    before = [each for each in inspect_model(model, 0).projections if each["role"] == "expert"]
    done = list(Quantize().apply(model, TARGETS["cpu"]))
    changed = {each.where: each.details for each in done if isinstance(each, Change)}
    experts = {name: each for name, each in changed.items() if each["role"] == "expert"}
    assert list(experts) == ["node_bmm", "node_bmm_1", "node_bmm_2", "node_bmm_3"] == [each["node"] for each in before]
    assert [each["layer"] for each in experts.values()] == [0, 0, 1, 1]
    after = [each for each in inspect_model(model, 0).projections if each["role"] == "expert"]
    assert [(each["bits"], each["layer"]) for each in after] == [(4, 0), (4, 0), (4, 1), (4, 1)]
    assert all("router" in each.reason or "table" in each.reason for each in done if isinstance(each, Skip))
