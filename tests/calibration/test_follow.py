"""The inputs of projections in the model that is being quantized, as `gptaq` sees them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from gated_mlp import V, activations, mlp, weights
from onnx import parser
from stored import operators

from onnx_tailor import pipeline, recipe
from onnx_tailor.calibration.calibrate import calibrate
from onnx_tailor.calibration.drift import DriftSums
from onnx_tailor.calibration.file import Calibration, read
from onnx_tailor.calibration.states import States
from onnx_tailor.errors import ModelError, UsageError
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.file.segments import segments
from onnx_tailor.passes.base import Circumstances
from onnx_tailor.passes.quantize import Quantize
from onnx_tailor.progress import Silent
from onnx_tailor.quant.hessian import DRIFT_DAMPING
from onnx_tailor.targets import TARGETS
from onnx_tailor.verify.tokens import Tokens

if TYPE_CHECKING:
    from onnx_tailor.report import Report

TOKENS = Tokens(np.random.default_rng(3).integers(0, V, (9, 17)), "no random ones")


def source(folder: Path, dtype: Any = np.float32) -> Path:
    w = {name: (values / 4).astype(dtype) for name, values in weights().items()}
    path = mlp(folder / "m.onnx", w)
    calibrate(path, folder / "c.npz", TOKENS, hessians=True)
    return path


def prepared(path: Path, scratch: Path, options: Quantize) -> Calibration:
    """What the run looks at when it quantizes."""
    scratch.mkdir()
    (found,) = options.prepare_set([load(path)], Circumstances(TARGETS["cpu"], scratch, Silent()))
    assert isinstance(found, Quantize)
    assert found.calibration is not None
    assert [file.name for file in scratch.iterdir()] == [found.calibration.name], "values are left"
    return read(found.calibration)


def tailor(path: Path, out: Path, options: str) -> Report:
    file = path.with_name(f"{out.name}.yaml")
    file.write_text(f"recipe: 1\npasses: [quantize: {{method: gptaq, calibration: c.npz, {options}}}]\n")
    return pipeline.run(recipe.load(str(file)), path, out)


def methods(report: Report) -> dict[str, str]:
    return {change.where: change.details["method"] for each in report.passes for change in each.changes}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_drift_is_that_of_the_model_that_is_written(tmp_path: Path, dtype: Any) -> None:
    """numpy computes the inputs with the weights that the run stored."""
    path = source(tmp_path, dtype)
    found = prepared(path, tmp_path / "scratch", Quantize(method="gptaq", calibration=tmp_path / "c.npz"))
    report = tailor(path, tmp_path / "out", "bits: 4")
    assert set(methods(report).values()) == {"gptaq"}
    w = {name: (values / 4).astype(dtype) for name, values in weights().items()}
    stored = {each.node.name: each for each in operators(tmp_path / "out" / "m.onnx", "MatMulNBits")}
    after = dict(w)
    for name in ("gate", "up", "down"):
        after[name] = stored[f"layers.0/{name}_proj"].dequantized(w[name].shape[0]).T.astype(dtype)
    plain, quantized = (activations(each, TOKENS.windows) for each in (w, after))
    known = read(tmp_path / "c.npz")
    for name, each in found.inputs.items():
        x, z = (values[name].reshape(TOKENS.windows.size, -1) for values in (plain, quantized))
        hessian = z.T @ z / len(z)
        damped = hessian + DRIFT_DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
        drift = (x - z).T @ z / len(z) @ np.linalg.inv(damped)
        atol = 1e-5 if dtype == np.float32 else 2e-3
        np.testing.assert_allclose(each.drift(), drift, atol=atol)
        assert np.abs(drift).max() > 3 * atol or name == "hidden", "the test sees no drift"
        assert np.array_equal(each.hessian(), known.inputs[name].hessian())
        assert np.array_equal(each.mean_square(), known.inputs[name].mean_square())
        assert each.count == TOKENS.windows.size
    assert np.array_equal(found.windows(), TOKENS.windows)
    assert np.array_equal(found.token_counts(), known.token_counts())


def test_two_bits_are_nearer_than_with_gptq(tmp_path: Path) -> None:
    path = source(tmp_path)
    w = {name: values / 4 for name, values in weights().items()}
    errors = {}
    for method in ("gptq", "gptaq"):
        tailor(path, tmp_path / method, f"bits: 4, block_size: 16, nodes: {{'*': {{bits: 2, method: {method}}}}}")
        after = dict(w)
        for each in operators(tmp_path / method / "m.onnx", "MatMulNBits"):
            name = each.node.name.removeprefix("layers.0/").removesuffix("_proj")
            after[name] = each.dequantized(w[name].shape[0]).T
        wanted, got = (
            activations(each, TOKENS.windows)["last"] @ each["head"].astype(np.float64) for each in (w, after)
        )
        errors[method] = float(np.mean((wanted - got) ** 2))
    assert errors["gptaq"] < 0.97 * errors["gptq"], errors


def test_some_weights_alone_with_others_quantized_otherwise(tmp_path: Path) -> None:
    """What is rounded by other methods stands in the model that is followed, too."""
    path = source(tmp_path)
    options = Quantize(method="gptaq", calibration=tmp_path / "c.npz", nodes={"*up*": "float"})
    with_up_in_float = prepared(path, tmp_path / "a", options)
    without = prepared(path, tmp_path / "b", Quantize(method="gptaq", calibration=tmp_path / "c.npz"))
    assert not np.allclose(with_up_in_float.inputs["gated"].drift(), without.inputs["gated"].drift(), atol=1e-4)
    report = tailor(path, tmp_path / "out", 'nodes: {"*up*": {method: rtn}, "*gate*": {method: imatrix}}')
    found = methods(report)
    assert found == {
        "layers.0/gate_proj": "imatrix",
        "layers.0/up_proj": "rtn",
        "layers.0/down_proj": "gptaq",
        "head": "gptaq",
    }


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    path = source(tmp_path)
    for name in ("a", "b"):
        tailor(path, tmp_path / name, "bits: 4")
    first, second = ((tmp_path / name / "m.onnx.data").read_bytes() for name in ("a", "b"))
    assert first == second


def test_random_tokens_are_no_reason_to_move_weights(tmp_path: Path) -> None:
    path = mlp(tmp_path / "m.onnx", weights())
    tokens = Tokens(TOKENS.windows, "random ones", random=True)
    calibrate(path, tmp_path / "c.npz", tokens, hessians=True)
    report = tailor(path, tmp_path / "out", "bits: 4")
    assert set(methods(report).values()) == {"gptq"}
    whats = [change.what for each in report.passes for change in each.changes]
    assert all("as gptq, since random tokens do not show how inputs drift" in what for what in whats)


def test_a_dry_run_says_what_it_does_not_know(tmp_path: Path) -> None:
    path = source(tmp_path)
    file = tmp_path / "r.yaml"
    file.write_text("recipe: 1\npasses: [quantize: {method: gptaq, calibration: c.npz}]\n")
    report = pipeline.run(recipe.load(str(file)), path, tmp_path / "out", dry_run=True)
    whats = [change.what for each in report.passes for change in each.changes]
    assert len(whats) == 4
    assert all("as gptq, since a dry run does not find out how inputs drift" in what for what in whats)


def test_a_model_that_cannot_be_cut_is_quantized_by_gptq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ModelError("no segment of it runs")

    path = source(tmp_path)
    monkeypatch.setattr("onnx_tailor.passes.followed_inputs.follow", refuse)
    report = tailor(path, tmp_path / "out", "bits: 4")
    assert set(methods(report).values()) == {"gptq"}
    assert all("no segment of it runs" in change.what for each in report.passes for change in each.changes)


def test_a_calibration_without_its_tokens(tmp_path: Path) -> None:
    path = source(tmp_path)
    with np.load(tmp_path / "c.npz") as archive:
        arrays = {name: values for name, values in archive.items() if name != "tokens"}
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(UsageError, match=r"c\.npz: holds no tokens, which `method: gptaq` needs; calibrate again"):
        tailor(path, tmp_path / "out", "bits: 4")
    assert not (tmp_path / "out").exists()


def test_inputs_that_are_not_as_many_have_no_drift() -> None:
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((3, 5)), rng.standard_normal((2, 5))
    sums = DriftSums("x", 5)
    with ThreadPoolExecutor(2) as pool:
        sums.add(x, z, pool)
        sums.add(z, x, pool)
        assert sums.drift() is None
        sums.add(x, x, pool)
    assert sums.drift() is None


def test_a_nan_on_the_way_is_an_error() -> None:
    sums = DriftSums("x", 2)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ModelError, match="the input x holds a NaN"):
        sums.add(np.ones((1, 2)), np.array([[1, np.nan]]), pool)


def test_values_between_segments(tmp_path: Path) -> None:
    import ml_dtypes

    states = States(tmp_path)
    arrays = [np.zeros((0, 3), np.int64), np.ones((2, 2), ml_dtypes.bfloat16), np.array(1, np.bool_), np.eye(3)[:, ::2]]
    for number, array in enumerate(arrays):
        states.put("both", number, array, quantized=(False, True))
    states.put("one", 0, np.ones(2), quantized=[False])
    states.put("one", 0, np.zeros(2), quantized=[True])
    for number, array in enumerate(arrays):
        found = states.get("both", number, quantized=True)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    with pytest.raises(ModelError, match=r"cannot be kept in .*: No such file"):
        States(tmp_path / "gone").put("x", 0, np.ones(1), quantized=[True])
    assert states.same(["both"])
    assert not states.same(["both", "one"])
    states.forget_all_but(["one"])
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_handed_from_segment_to_segment(tmp_path: Path) -> None:
    """A mask is computed anew, a residual handed on over a segment that does not read it, and an If reads outer values.

    What weights compute for a branch is handed over too.
    """
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        f (int64[1, s] ids, bool yes) => (float[1, s, 4] out) <float[9, 4] table, float[4, 4] a, float[4, 4] b,
                                                               float[4, 4] c> {
            mask = Cast<to: int = 1>(ids)
            row = Unsqueeze(mask, one)
            h = Gather(table, ids)
            m = MatMul(h, a)
            x = Tanh(m)
            n = MatMul(x, b)
            y = If(yes) <
                then_branch: graph = t () => (float[1, s, 4] p) { p = Add(n, m) },
                else_branch: graph = e () => (float[1, s, 4] q) { q = Add(n, row) }
            >
            o = MatMul(y, c)
            out = Add(o, h)
        }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "one"))
    for name, shape in (("table", (9, 4)), ("a", (4, 4)), ("b", (4, 4)), ("c", (4, 4))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(model, tmp_path / "m.onnx")
    found = load(tmp_path / "m.onnx")
    nodes = {node.outputs[0].name: node for node in found.graph}
    values = {name: node.outputs[0] for name, node in nodes.items()}
    parts = segments(found, [nodes[name] for name in ("h", "m", "n", "o")], [values[name] for name in ("h", "x", "y")])
    assert [set(part.yields) for part in parts] == [{"h"}, {"h", "m", "x"}, {"h", "y"}]
    assert [set(part.reads) for part in parts] == [set(), {"h"}, {"h", "m", "x"}]
    assert nodes["n"] in parts[2].nodes
    assert len(parts[2].nodes) == 2 + 2, "with the nodes inside the branches"
