"""Tables beside a head that is quantized already."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantized_models import FLOATS, IDS, Case, DataFile, Weights, build, feeds, run, save, weights

from onnx_tailor import pipeline, recipe
from onnx_tailor.quant import BlockFormat, quantize
from onnx_tailor.quant.packing import pack
from onnx_tailor.quant.quantize import unpack
from onnx_tailor.report import Change, Report, Skip


def tailor(model: Path, out: Path, target: str = "cpu", options: str = "") -> Report:
    text = out.with_suffix(".yaml")
    text.write_text(f"recipe: 1\npasses:\n  - tie-embeddings: {{{options}}}\n")
    return pipeline.run(recipe.load(str(text)), model, out, target=target)


def results(report: Report) -> tuple[list[Change], list[Skip]]:
    (done,) = report.passes
    return list(done.changes), list(done.skips)


def beside(folder: Path, case: Case, method: str, table_dtype: str, *, seed: int = 0) -> tuple[Path, Weights]:
    """Write a float Gather beside a MatMulNBits that `quantize` made of the same table."""
    rng = np.random.default_rng(seed)
    table = (rng.standard_normal((case.v, case.k)) * 0.02).astype(FLOATS[table_dtype])
    fmt = BlockFormat(case.bits, case.block, case.symmetric, case.dtype)
    q = quantize(table.astype(np.float32), fmt, method)
    data = DataFile(folder / "model.onnx.data")
    names = ["codes", "scales", *(["points"] if q.zero_points is not None else [])]
    arrays = [q.codes, q.scales, *([q.zero_points] if q.zero_points is not None else [])]
    initializers = [data.tensor(name, array) for name, array in zip(names, arrays, strict=True)]
    initializers.append(data.tensor("table", table))
    float_type = helper.np_dtype_to_tensor_dtype(table.dtype)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="/embed"),
        helper.make_node(
            "MatMulNBits",
            ["x", *names],
            ["logits"],
            name="/lm_head",
            domain="com.microsoft",
            K=case.k,
            N=case.v,
            bits=case.bits,
            block_size=case.block,
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"]),
            helper.make_tensor_value_info("x", case.scale_type, ["n", case.k]),
        ],
        [
            helper.make_tensor_value_info("rows", float_type, ["b", "s", case.k]),
            helper.make_tensor_value_info("logits", case.scale_type, ["n", case.v]),
        ],
        initializers,
    )
    return save(graph, data, folder / "model.onnx"), Weights(q.codes, q.scales, q.zero_points, table)


FORMS = [
    (Case(bits, symmetric, dtype, k=80, v=64), method, table)
    for bits, symmetric, method in product((2, 4, 8), (True, False), ("rtn", "k_quant"))
    for dtype, table in (("float32", "float32"), ("float16", "float16"), ("float32", "float16"))
]


@pytest.mark.parametrize(("case", "method", "table"), FORMS)
def test_a_float_table_beside_its_quantized_head(tmp_path: Path, case: Case, method: str, table: str) -> None:
    model, w = beside(tmp_path, case, method, table)
    report = tailor(model, tmp_path / "out", options="required: true")
    (change,), _ = results(report)
    assert "all 5120 elements have the nearest code" in change.what
    saved = report.before.weight_bytes - report.after.weight_bytes
    assert w.values.nbytes - 200 < saved <= w.values.nbytes  # but for small shapes and constants
    before, after = run(model, feeds(case)), run(tmp_path / "out" / model.name, feeds(case))
    assert np.array_equal(before[1], after[1])
    assert np.array_equal(after[0], after[1].T[IDS].astype(FLOATS[table]))
    again = tailor(tmp_path / "out" / model.name, tmp_path / "again")
    assert not results(again)[0]


@pytest.mark.parametrize("target", ["cpu", "cuda", "portable"])
def test_the_layout_is_the_targets(tmp_path: Path, target: str) -> None:
    model, _ = beside(tmp_path, Case(4, k=96, v=64), "rtn", "float32")
    (change,), _ = results(tailor(model, tmp_path / "out", target))
    assert change.details["layout"] == {"cpu": "plain", "cuda": "correction", "portable": "plain"}[target]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_one_element_of_another_table_is_enough(tmp_path: Path, bits: int) -> None:
    case = Case(bits, v=64)
    model, w = beside(tmp_path, case, "rtn", "float32")
    step = float(np.abs(w.scales[9, 1]))
    content = bytearray((tmp_path / "model.onnx.data").read_bytes())
    (table,) = (t for t in onnx.load(model, load_external_data=False).graph.initializer if t.name == "table")
    place = {e.key: e.value for e in table.external_data}
    start = int(place["offset"]) + 4 * (9 * case.k + 40)
    value = np.frombuffer(bytes(content[start : start + 4]), np.float32)[0]
    moved = value - np.sign(value) * 0.8 * step  # inwards, so that it is not clipped
    content[start : start + 4] = np.float32(moved).tobytes()
    (tmp_path / "model.onnx.data").write_bytes(content)
    changes, skips = results(tailor(model, tmp_path / "out"))
    assert not changes
    (reason,) = (s.reason for s in skips if "no rounding" in s.reason)
    assert "1 of 4096 elements have another code than the nearest" in reason
    assert "at row 9, column 40" in reason


@pytest.mark.parametrize("layout", ["alias", "reshape"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_copy_shares_the_heads_bytes(tmp_path: Path, layout: str, bits: int) -> None:
    case = Case(bits, v=512, layout="alias", own_copy=True)
    model = build(tmp_path, case)
    report = tailor(model, tmp_path / "out")
    (change,), _ = results(report)
    assert "equal bytes" in change.what
    assert report.before.weight_bytes - report.after.weight_bytes == weights(case).codes.nbytes
    before, after = run(model, feeds(case)), run(tmp_path / "out" / model.name, feeds(case))
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert not results(tailor(tmp_path / "out" / model.name, tmp_path / "again"))[0]


def typed(folder: Path, case: Case) -> Path:
    """Write the table as ONNX Runtime's quantizer does: INT4, or UINT4 with zero points, beside the head's bytes."""
    model, w = beside(folder, case, "rtn", "float32")
    proto = onnx.load(model)
    codes = unpack(w.codes, 4).reshape(case.v, -1)[:, : case.k]
    blocks = w.scales.shape[1]
    kind, values = TensorProto.INT4, codes.astype(np.int8) - 8
    inputs = ["own", "ids", "scales"]
    if w.points is not None:
        kind, values = TensorProto.UINT4, codes
        points = unpack(w.points, 4)[:, :blocks]
        proto.graph.initializer.append(four_bits("own_points", kind, points))
        inputs.append("own_points")
    proto.graph.initializer.append(four_bits("own", kind, values))
    gather = helper.make_node(
        "GatherBlockQuantized",
        inputs,
        ["rows"],
        name="/embed",
        domain="com.microsoft",
        block_size=case.block,
        gather_axis=0,
        quantize_axis=1,
    )
    proto.graph.node[0].CopyFrom(gather)
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "table"))
    onnx.save(proto, folder / "typed.onnx")
    return folder / "typed.onnx"


def four_bits(name: str, kind: int, values: np.ndarray) -> TensorProto:
    raw = pack(values.reshape(-1).astype(np.uint8) & 15, 4).tobytes()
    return TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=raw)


@pytest.mark.parametrize("k", [64, 80])  # with 80 there are three blocks, so that zero points share bytes across rows
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_of_a_type_of_four_bits_are_the_heads(tmp_path: Path, k: int, symmetric: bool) -> None:
    case = Case(4, symmetric, k=k, v=63)
    model = typed(tmp_path, case)
    (change,), _ = results(tailor(model, tmp_path / "out"))
    assert "are equal" in change.what
    before, after = run(model, feeds(case)), run(tmp_path / "out" / model.name, feeds(case))
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert not results(tailor(tmp_path / "out" / model.name, tmp_path / "again"))[0]


@pytest.mark.parametrize("name", ["own", "own_points", "scales"])
def test_one_nibble_of_another_table_is_enough(tmp_path: Path, name: str) -> None:
    model = typed(tmp_path, Case(4, symmetric=False, k=80, v=63))
    proto = onnx.load(model)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    if name == "scales":  # a copy of its own for the table
        proto.graph.initializer.append(tensor)
        tensor = proto.graph.initializer[-1]
        tensor.name = proto.graph.node[0].input[2] = "own_scales"
    raw = bytearray(tensor.raw_data)
    raw[len(raw) // 2] ^= 1
    tensor.raw_data = bytes(raw)
    onnx.save(proto, model)
    assert not results(tailor(model, tmp_path / "out"))[0]


def test_a_quantized_copy_that_differs_stays(tmp_path: Path) -> None:
    case = Case(4, v=512, layout="alias", own_copy=True)
    model = build(tmp_path, case)
    data = tmp_path / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1  # the copy of the codes lies last
    data.write_bytes(content)
    changes, _ = results(tailor(model, tmp_path / "out"))
    assert not changes


def test_a_quantized_tie_satisfies_required(tmp_path: Path) -> None:
    changes, (skip,) = results(tailor(build(tmp_path, Case(4, v=64)), tmp_path / "out", options="required: true"))
    assert not changes
    assert (skip.reason, skip.details) == ("it is tied already", {"tied": True})


def test_a_quantized_head_without_a_table_is_told(tmp_path: Path) -> None:
    model, _ = beside(tmp_path, Case(4, v=64), "rtn", "float32")
    proto = onnx.load(model, load_external_data=False)
    (table,) = (t for t in proto.graph.initializer if t.name == "table")
    table.dims[:] = [128, 32]
    del proto.graph.output[0]
    proto.graph.node[0].input[0] = "table"
    model.write_bytes(proto.SerializeToString())
    changes, (skip,) = results(tailor(model, tmp_path / "out"))
    assert not changes
    assert skip.where == "/lm_head"
    assert skip.reason == "it is quantized already, and no token table holds its values"


@pytest.mark.parametrize(
    ("bits", "symmetric", "algorithm"),
    [(4, True, None), (4, False, None), (8, True, None), (8, False, None), (4, False, "rtn"), (4, False, "k_quant")],
)
def test_what_onnxruntimes_quantizers_make_of_a_head(
    tmp_path: Path, bits: int, symmetric: bool, algorithm: str | None
) -> None:
    from onnxruntime.quantization import matmul_nbits_quantizer as others

    table = (np.random.default_rng(0).standard_normal((256, 64)) * 0.02).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="/embed"),
        helper.make_node("MatMul", ["x", "head"], ["logits"], name="/lm_head"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64]),
        ],
        [
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["b", "s", 64]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 256]),
        ],
        [
            onnx.numpy_helper.from_array(table, "table"),
            onnx.numpy_helper.from_array(np.ascontiguousarray(table.T), "head"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    configs = {"rtn": others.RTNWeightOnlyQuantConfig, "k_quant": others.KQuantWeightOnlyQuantConfig}
    config = configs[algorithm]() if algorithm else None
    quantizer = others.MatMulNBitsQuantizer(proto, bits=bits, block_size=32, is_symmetric=symmetric, algo_config=config)
    quantizer.process()
    (tmp_path / "model.onnx").write_bytes(quantizer.model.model.SerializeToString())
    (change,), _ = results(tailor(tmp_path / "model.onnx", tmp_path / "out", options="required: true"))
    assert "all 16384 elements have the nearest code" in change.what
    rows, product = run(tmp_path / "out" / "model.onnx", {"ids": IDS, "x": np.eye(64, dtype=np.float32)})
    assert np.array_equal(rows, product.T[IDS])


def test_scales_behind_a_cast_that_stands_late(tmp_path: Path) -> None:
    """The table reads it from then on, in front of what stood before it."""
    case = Case(bits=4, symmetric=True, dtype="float16", k=64, v=96)
    model, _ = beside(tmp_path, case, "rtn", "float32")
    proto = onnx.load(model, load_external_data=False)
    head = next(node for node in proto.graph.node if node.op_type == "MatMulNBits")
    head.input[2] = "wide"
    proto.graph.node.insert(1, helper.make_node("Cast", ["scales"], ["wide"], to=TensorProto.FLOAT))
    for value in (proto.graph.input[1], proto.graph.output[1]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    model.write_bytes(proto.SerializeToString())
    changes, skips = results(tailor(model, tmp_path / "out"))
    assert (len(changes), skips) == (1, [])
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))
