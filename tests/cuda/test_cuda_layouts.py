"""What `targets/cuda.toml` says of CUDA, run on a GPU: the right layouts right, the wrong ones wrong.

Skipped where ONNX Runtime has no CUDA device. The CPU is kept out of the sessions, so that nothing falls back to it.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantized_models import FLOATS, IDS, LAYOUTS, Case, DataFile, build, convert, pack, possible, save, weights

from onnx_tailor.targets import TARGETS, TableForm


def _no_cuda() -> str:
    """Return why nothing can be run here, or "" where a CUDA session comes to life."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this ONNX Runtime has no CUDA provider"
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])
    except Exception as error:  # a driver that is missing says so in many ways
        return f"no CUDA session: {str(error).splitlines()[0][:120]}"
    return "" if "CUDAExecutionProvider" in session.get_providers() else "no CUDA device or driver was found"


NO_CUDA = _no_cuda()
pytestmark = pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA or "a CUDA device is here")

TARGET = TARGETS["cuda"]
COLUMNS = (64, 96, 80, 112, 160)  # 2, 3, 3 padded, 4 padded and 5 blocks
CASES = [
    Case(bits, symmetric, dtype, k, head=bits != 2 and dtype != "bfloat16")
    for bits, symmetric, dtype, k in product((2, 4, 8), (True, False), FLOATS, COLUMNS)
]
FORMS = [(case, layout) for case in CASES for layout in LAYOUTS if possible(case, layout)]


def form(case: Case) -> TableForm:
    return TableForm(case.bits, not case.symmetric, case.blocks * case.bits % 8 == 0)


def run(path: Path, case: Case) -> list[np.ndarray]:
    """Run the model on the GPU alone; bfloat16 rows come out as float32, which holds them exactly."""
    import onnxruntime as ort

    if case.dtype == "bfloat16":
        model = onnx.load(path, load_external_data=False)
        model.graph.node.append(helper.make_node("Cast", ["rows"], ["wide"], to=TensorProto.FLOAT))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("wide", TensorProto.FLOAT, None))
        path.write_bytes(model.SerializeToString())
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(path, options, providers=["CUDAExecutionProvider"])
    feeds: dict[str, np.ndarray] = {"ids": IDS}
    if case.head:
        feeds["x"] = np.eye(case.k, dtype=FLOATS[case.dtype])
    return session.run(None, feeds)


@pytest.mark.parametrize(("case", "layout"), FORMS, ids=str)
def test_the_table_of_layouts_is_true(tmp_path: Path, case: Case, layout: str) -> None:
    rows, *head = run(convert(build(tmp_path, case), tmp_path, layout), case)
    stored = weights(case).values.astype(FLOATS[case.dtype])
    if head:
        assert np.allclose(head[0].T.astype(np.float32), stored.astype(np.float32), rtol=2e-3, atol=1e-6)
    expected, found = stored[IDS].astype(np.float32), rows.astype(np.float32)
    if TARGET.objection(layout, form(case)) is not None:
        assert not np.allclose(found, expected, rtol=0, atol=1e-3)
        return
    if layout == "correction":  # three roundings in the place of one
        unit = float(np.finfo(np.float32).eps) if case.dtype == "float32" else 2.0 ** (-10 if "16" in case.dtype else 0)
        unit = 2.0**-7 if case.dtype == "bfloat16" else unit
        largest = np.abs(weights(case).scales.astype(np.float32)).max() * (1 << case.bits)
        assert np.abs(found - expected).max() <= 2 * unit * largest
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_that_end_inside_a_block_are_wrong(tmp_path: Path, bits: int, dtype: str) -> None:
    assert TARGET.ragged_rows
    rng = np.random.default_rng(0)
    columns, block, rows = 48, 32, 8
    codes = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.1, (rows, 2)).astype(FLOATS[dtype])
    values = (codes.astype(np.float32) - (1 << bits - 1)) * scales.astype(np.float32)[:, np.arange(columns) // block]
    data = DataFile(tmp_path / "model.onnx.data")
    node = helper.make_node(
        "GatherBlockQuantized",
        ["codes", "ids", "scales"],
        ["rows"],
        domain="com.microsoft",
        bits=bits,
        block_size=block,
        gather_axis=0,
        quantize_axis=1,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("rows", helper.np_dtype_to_tensor_dtype(scales.dtype), None)],
        [data.tensor("codes", pack(codes, bits)), data.tensor("scales", scales)],
    )
    (found,) = run(save(graph, data, tmp_path / "model.onnx"), Case(bits, dtype=dtype, head=False))
    assert not np.allclose(found.astype(np.float32), values[IDS], rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", [c for c in CASES if c.k == 96 and c.head], ids=str)
def test_what_the_target_takes_is_right(tmp_path: Path, case: Case) -> None:
    layout = TARGET.layout(form(case))
    rows, _ = run(convert(build(tmp_path, case), tmp_path, layout), case)
    expected = weights(case).values.astype(FLOATS[case.dtype])[IDS].astype(np.float32)
    assert np.allclose(rows.astype(np.float32), expected, rtol=0, atol=0.02 if case.dtype == "float16" else 1e-5)


def test_two_bits_have_no_matmul(tmp_path: Path) -> None:
    assert all(2 not in kernel.since for kernel in TARGET.kernels_of("MatMulNBits"))
    with pytest.raises(Exception, match=r"MatMulNBits|fallback|assigned|bits"):
        run(convert(build(tmp_path, Case(2)), tmp_path, "plain"), Case(2))
