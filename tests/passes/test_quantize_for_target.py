"""What `quantize` says where the target cannot multiply by what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from onnx_tailor import pipeline, recipe
from onnx_tailor.targets import TARGETS

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model.onnx"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [2, 4])
def test_bits_without_a_kernel_are_told(target: str, bits: int) -> None:
    chosen = recipe.load("rtn", settings=[f"quantize.bits={bits}"])
    report = pipeline.run(chosen, EXAMPLE, None, target=target, dry_run=True)
    (done,) = [done for done in report.passes if done.name == "quantize"]
    told = {f"no kernel of {bits} bits on {target}" in change.what for change in done.changes}
    assert told == {bits == 2 and target in {"cuda", "dml", "portable"}}


@pytest.mark.parametrize("ids", ["int64[b, s] input_ids", "int64[] input_ids"])
@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13])
@pytest.mark.parametrize("target", TARGETS)
def test_old_opsets(tmp_path: Path, target: str, opset: int, ids: str) -> None:
    """Below 13, Unsqueeze has its axes as an attribute; `int64[]` has no known rank."""
    weight = np.random.default_rng(0).standard_normal((40, 48), np.float32)
    text = f"""<ir_version: 6, opset_import: ["" : {opset}]> model ({ids}) => (float[] logits)
    <float[40, 48] E, float[48, 40] W> {{ h = Gather(E, input_ids) logits = MatMul(h, W) }}"""
    model = onnx.parser.parse_model(text)
    del model.graph.initializer[:]
    copies = {"E": weight, "W": np.ascontiguousarray(weight.T)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in copies.items())
    onnx.save(model, tmp_path / "model.onnx")
    pipeline.run(recipe.load("k-quant-8bit"), tmp_path / "model.onnx", tmp_path / "out", target=target)
    found = [
        ort.InferenceSession(str(folder / "model.onnx")).run(None, {"input_ids": np.array([[3, 39, 0]])})[0]
        for folder in (tmp_path, tmp_path / "out")
    ]
    changed = np.abs(found[0] - found[1]).max()
    assert changed < 0.01 * np.abs(found[0]).max()
    assert (changed > 1e-4) == (opset >= 11)  # below, rows of codes have no nodes around them
