"""Each rule on a file that has its problem, and on one that has not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantized_models import FLOATS, Case, DataFile, build, pack, save, weights

from onnx_tailor.lint.data_files import unread
from onnx_tailor.lint.finding import Finding
from onnx_tailor.lint.rules import lint

FIXTURE = Path(__file__).parents[1] / "fixtures" / "genai-int4-asymmetric" / "model.onnx"
V, K = 512, 64


def findings(model: Path, target: str, rule: str) -> list[Finding]:
    return [finding for finding in lint(model, target).findings if finding.rule == rule]


def mends(found: list[Finding]) -> list[str | None]:
    return [finding.mend.line if finding.mend else None for finding in found]


def float_model(
    folder: Path,
    *,
    nodes: list[onnx.NodeProto] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    alignment: int = 4096,
    share: bool = True,
    tail: int = 0,
) -> Path:
    """Write a model of a Gather on `table` and a MatMul by `head`, or of other nodes."""
    table = np.random.default_rng(0).standard_normal((V, K)).astype(np.float32)
    arrays = arrays or {"table": table, "head": table.T + 1}
    nodes = nodes or [
        helper.make_node("Gather", ["table", "ids"], ["h"], name="/embed"),
        helper.make_node("MatMul", ["h", "head"], ["logits"], name="/lm_head"),
    ]
    data = DataFile(folder / "model.onnx.data", alignment=alignment)
    initializers = [data.tensor(name, array, share=share) for name, array in arrays.items()]
    data.content += bytes(tail)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        initializers,
    )
    return save(graph, data, folder / "model.onnx")


# broken-table, unclear-table, ragged-rows


def test_missing_attributes_and_shapes(tmp_path: Path) -> None:
    (first, second) = findings(build(tmp_path, Case(8, attributes=False)), "cpu", "broken-table")
    assert "gather_axis is missing" in first.what
    assert "quantize_axis is missing" in second.what
    assert mends([first, second]) == ["reshape-dim"] * 2
    assert not findings(build(tmp_path, Case(8)), "cpu", "broken-table")


def test_the_builders_asymmetric_tied_export() -> None:
    (found,) = findings(FIXTURE, "cpu", "broken-table")
    assert "are a float weight, float[64, 512], and no codes" in found.what


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    path = build(tmp_path, Case(4, head=False))
    model = onnx.load(path, load_external_data=False)
    (node,) = (n for n in model.graph.node if n.op_type == "GatherBlockQuantized")
    (attribute,) = (a for a in node.attribute if a.name == "block_size")
    attribute.i = 64
    path.write_bytes(model.SerializeToString())
    (found,) = findings(path, "cpu", "unclear-table")
    assert "do not fit" in found.what
    assert mends([found]) == [None]


@pytest.mark.parametrize(("target", "problems"), [("cpu", 0), ("cuda", 1), ("webgpu", 0), ("portable", 1)])
def test_rows_that_end_inside_a_block(tmp_path: Path, target: str, problems: int) -> None:
    case = Case(4, symmetric=True, k=48, head=False)
    codes = np.random.default_rng(0).integers(0, 16, (8, 48)).astype(np.uint8)
    scales = np.ones((8, 2), np.float32)
    data = DataFile(tmp_path / "model.onnx.data")
    node = helper.make_node(
        "GatherBlockQuantized",
        ["codes", "ids", "scales"],
        ["rows"],
        name="/embed",
        domain="com.microsoft",
        bits=4,
        block_size=32,
        gather_axis=0,
        quantize_axis=1,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", case.k])],
        [data.tensor("codes", pack(codes, 4)), data.tensor("scales", scales)],
    )
    path = save(graph, data, tmp_path / "model.onnx")
    found = findings(path, target, "ragged-rows")
    assert len(found) == problems
    assert all("issue 32663" in finding.what for finding in found)
    assert not findings(path, target, "unclear-table")


# table-layout, device-copy, second-copy


@pytest.mark.parametrize("target", ["cpu", "cuda", "webgpu", "dml"])
def test_packed_zero_points_of_odd_blocks(tmp_path: Path, target: str) -> None:
    (found,) = findings(build(tmp_path, Case(4, k=96, layout="alias")), target, "table-layout")
    assert "zero points" in found.what
    assert mends([found]) == ["reshape-dim"]
    assert not findings(build(tmp_path, Case(4, k=64, layout="alias")), target, "table-layout")


@pytest.mark.parametrize("target", ["wasm", "portable"])
def test_no_kernel_in_the_browser(tmp_path: Path, target: str) -> None:
    (found,) = findings(build(tmp_path, Case(4)), target, "table-layout")
    assert "no GatherBlockQuantized" in found.what


def test_an_alias_on_a_device(tmp_path: Path) -> None:
    case = Case(8, layout="alias", v=V)
    (found,) = findings(build(tmp_path, case), "cuda", "device-copy")
    assert found.bytes == weights(case).codes.nbytes
    assert not findings(tmp_path / "model.onnx", "cpu", "device-copy")


def test_a_reshape_of_the_heads_codes(tmp_path: Path) -> None:
    case = Case(8, v=V)
    (found,) = findings(build(tmp_path, case), "cpu", "second-copy")
    assert (found.where, found.bytes) == ("/flat", weights(case).codes.nbytes)
    assert mends([found]) == ["reshape-dim"]
    assert not findings(build(tmp_path, Case(8, layout="alias", v=V)), "cpu", "second-copy")


TRANSPOSED_HEAD = [
    helper.make_node("Gather", ["table", "ids"], ["h"], name="/embed"),
    helper.make_node("Transpose", ["weight"], ["head"], name="/transpose"),
    helper.make_node("MatMul", ["h", "head"], ["logits"], name="/lm_head"),
]
TRANSPOSED_TABLE = [
    helper.make_node("Transpose", ["weight"], ["table"], name="/transpose"),
    helper.make_node("Gather", ["table", "ids"], ["h"], name="/embed"),
    helper.make_node("MatMul", ["h", "weight"], ["logits"], name="/lm_head"),
]


@pytest.mark.parametrize(("target", "problems"), [("cpu", 0), ("cuda", 1), ("portable", 1)])
def test_a_transpose_of_the_head(tmp_path: Path, target: str, problems: int) -> None:
    table = np.random.default_rng(0).standard_normal((V, K)).astype(np.float32)
    path = float_model(tmp_path, nodes=TRANSPOSED_HEAD, arrays={"table": table, "weight": table})
    found = findings(path, target, "second-copy")
    assert [(f.where, f.bytes) for f in found] == [("/transpose", table.nbytes)] * problems
    assert mends(found) == ["tie-embeddings"] * problems
    # A Transpose that is the weight's only reader takes the weight's place in memory.
    arrays = {"table": table, "weight": table + 1}
    assert not findings(float_model(tmp_path, nodes=TRANSPOSED_HEAD, arrays=arrays), target, "second-copy")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_transpose_of_the_table(tmp_path: Path, target: str) -> None:
    weight = np.random.default_rng(0).standard_normal((K, V)).astype(np.float32)
    path = float_model(tmp_path, nodes=TRANSPOSED_TABLE, arrays={"weight": weight})
    (found,) = findings(path, target, "second-copy")
    assert (found.where, found.bytes, mends([found])) == ("/transpose", weight.nbytes, ["tie-embeddings"])


# no-kernel, bfloat16, release, accuracy-level


@pytest.mark.parametrize(
    ("target", "case", "what"),
    [
        ("cuda", Case(2, k=64), "MatMulNBits with 2 bits has no kernel, only with 4 and 8"),
        ("cpu", Case(4, dtype="bfloat16"), "in bfloat16 has no kernel, only in float32 and float16"),
        ("webgpu", Case(4, dtype="bfloat16"), "in bfloat16 has no kernel"),
        ("portable", Case(2, k=64), "MatMulNBits with 2 bits has no kernel"),
    ],
)
def test_no_kernel(tmp_path: Path, target: str, case: Case, what: str) -> None:
    found = findings(build(tmp_path, case), target, "no-kernel")
    assert found
    assert what in found[0].what
    assert not findings(build(tmp_path, Case(4)), target, "no-kernel")


def test_inputs_that_a_kernel_does_not_take(tmp_path: Path) -> None:
    path = build(tmp_path, Case(4))
    model = onnx.load(path, load_external_data=False)
    (node,) = (n for n in model.graph.node if n.op_type == "MatMulNBits")
    node.input.extend(["", "bias"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(8, np.float32), "bias"))
    path.write_bytes(model.SerializeToString())
    (found,) = findings(path, "dml", "no-kernel")
    assert "with a bias" in found.what
    assert not findings(path, "cpu", "no-kernel")
    node.input[3] = "points"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((8, 2), np.float32), "points"))
    path.write_bytes(model.SerializeToString())
    (found,) = findings(path, "webgpu", "no-kernel")
    assert "float zero points of 4 bits" in found.what
    assert not findings(path, "cpu", "no-kernel")
    (found,) = findings(path, "cpu", "float-zero-points")
    assert "at every run" in found.what


def test_bfloat16_weights(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((V, K)).astype(FLOATS["bfloat16"])
    nodes = [helper.make_node("Gather", ["table", "ids"], ["logits"], name="/embed")]
    path = float_model(tmp_path, nodes=nodes, arrays={"table": table})
    (found,) = findings(path, "cpu", "bfloat16")
    assert found.bytes == table.nbytes
    assert not findings(path, "cuda", "bfloat16")


def test_columns_that_fill_no_whole_blocks(tmp_path: Path) -> None:
    (found,) = findings(build(tmp_path, Case(4, k=80)), "webgpu", "padded-columns")
    assert found.level == "note"
    assert found.what.startswith("80 columns in blocks of 32: the older WebGPU")
    assert not findings(build(tmp_path, Case(4, k=96)), "webgpu", "padded-columns")
    assert not findings(build(tmp_path, Case(4, k=80)), "cpu", "padded-columns")


def test_the_oldest_release(tmp_path: Path) -> None:
    (found,) = findings(build(tmp_path, Case(2)), "cpu", "release")
    assert "2 bits needs ONNX Runtime 1.28 or newer" in found.what
    assert found.level == "note"
    assert any(
        "no zero points" in f.what for f in findings(build(tmp_path, Case(4, symmetric=True)), "cuda", "release")
    )
    assert not findings(float_model(tmp_path), "cpu", "release")


def test_eight_bits_without_integers(tmp_path: Path) -> None:
    (found,) = findings(build(tmp_path, Case(8)), "cpu", "accuracy-level")
    assert (found.level, mends([found])) == ("note", ["accuracy-level: {level: 4}"])
    assert not findings(build(tmp_path, Case(8)), "cuda", "accuracy-level")
    assert not findings(build(tmp_path, Case(4)), "cpu", "accuracy-level")


def test_webassembly_reads_no_codes(tmp_path: Path) -> None:
    (found,) = findings(build(tmp_path, Case(4)), "wasm", "unpacked")
    assert (found.level, found.where, found.bytes, mends([found])) == ("note", "/lm_head", 64 * 8 * 4, [None])
    assert findings(build(tmp_path, Case(8)), "portable", "unpacked")
    assert not findings(build(tmp_path, Case(4)), "webgpu", "unpacked")


# untied, duplicate


def test_a_head_that_is_a_copy_of_the_table(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((V, K)).astype(np.float32)
    (found,) = findings(float_model(tmp_path, arrays={"table": table, "head": table.T}), "cpu", "untied")
    assert (found.where, found.bytes, mends([found])) == ("/lm_head", table.nbytes, ["tie-embeddings"])
    assert not findings(float_model(tmp_path), "cpu", "untied")


def test_a_copy_that_both_branches_read(tmp_path: Path) -> None:
    """A merged decoder's head stands in both branches of its If, over one copy of the table."""
    folder = Path(__file__).parents[1] / "fixtures" / "exports" / "optimum-past-bart-fp32"
    (found,) = findings(folder / "decoder_model_merged.onnx", "cpu", "untied")
    assert found.bytes > 0


def test_a_quantized_table_of_its_own(tmp_path: Path) -> None:
    case = Case(4, v=V, layout="alias", own_copy=True)
    path = build(tmp_path, case)
    (found,) = findings(path, "cpu", "untied")
    assert (found.bytes, mends([found])) == (weights(case).codes.nbytes, ["tie-embeddings"])
    assert not findings(build(tmp_path, Case(4, v=V, layout="alias")), "cpu", "untied")


def test_equal_weights(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).standard_normal((K, K)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"]),
        helper.make_node("MatMul", ["h", "a"], ["i"]),
        helper.make_node("MatMul", ["i", "b"], ["j"]),
        helper.make_node("MatMul", ["j", "c"], ["logits"]),
    ]
    table = np.ones((V, K), np.float32)
    other = weight.copy()
    other[-1, -1] += 1
    arrays = {"table": table, "a": weight, "b": other, "c": weight}
    (found,) = findings(float_model(tmp_path, nodes=nodes, arrays=arrays, share=False), "cpu", "duplicate")
    assert (found.where, found.bytes) == ("a", weight.nbytes)
    assert "stored 2 times: a, c" in found.what
    assert not findings(float_model(tmp_path, nodes=nodes, arrays=arrays), "cpu", "duplicate")


# binding, orphaned-bytes, alignment


def test_a_weight_that_is_too_large_to_bind(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shape = (1 << 19, 128)  # 256 MiB in float32, which is a hole in the file
    with (tmp_path / "model.onnx.data").open("wb") as file:
        file.truncate(4 * shape[0] * shape[1])
    table = onnx.TensorProto(name="table", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    table.external_data.add(key="location", value="model.onnx.data")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"], name="/embed")],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", shape[1]])],
        [table],
    )
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    (found,) = findings(path, "webgpu", "binding")
    assert "256 MiB in one weight, above 128" in found.what
    assert mends([found]) == ["quantize: {bits: 8, embeddings: true}"]
    assert not findings(path, "cpu", "binding")


def test_bytes_that_no_weight_reads(tmp_path: Path) -> None:
    (found,) = findings(float_model(tmp_path, tail=200_000), "cpu", "orphaned-bytes")
    assert (found.where, found.bytes) == ("model.onnx.data", 200_000)
    assert not findings(float_model(tmp_path), "cpu", "orphaned-bytes")


@pytest.mark.parametrize(
    ("used", "size", "lost"),
    [
        ([(0, 100)], 100, 0),
        ([(0, 100), (4096, 5000)], 5000, 0),
        ([(0, 100), (65536, 70000)], 70000, 0),
        ([(0, 100), (100_000, 100_100)], 100_100, 99_900),
        ([(0, 100)], 9000, 8900),
        ([(0, 100), (0, 50), (20, 300)], 300, 0),
        ([(8192, 9000)], 9000, 8192),
        ([(1 << 20, (1 << 20) + 8)], (1 << 20) + 8, 1 << 20),
    ],
)
def test_padding_is_not_lost(used: list[tuple[int, int]], size: int, lost: int) -> None:
    assert unread(used, size) == lost


def test_weights_of_two_models_in_one_file(tmp_path: Path) -> None:
    path = float_model(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:  # each of the two files names one weight and has the other as an input
        part = onnx.ModelProto()
        part.CopyFrom(model)
        del part.graph.initializer[:]
        part.graph.initializer.append(tensor)
        for node in part.graph.node:
            for name in node.input:
                if name in {"table", "head"} - {tensor.name}:
                    part.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        (tmp_path / f"{tensor.name}.onnx").write_bytes(part.SerializeToString())
    path.unlink()
    assert findings(tmp_path / "table.onnx", "cpu", "orphaned-bytes")
    assert not findings(tmp_path, "cpu", "orphaned-bytes")


def test_places_that_cannot_be_mapped(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((1 << 13, K)).astype(np.float32)
    arrays = {"odd": np.zeros(300, np.int8), "table": table}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["logits"], name="/embed"),
        helper.make_node("Identity", ["odd"], ["unread"]),
    ]
    (found,) = findings(float_model(tmp_path, nodes=nodes, arrays=arrays, alignment=4), "cpu", "alignment")
    assert found.level == "note"
    assert not findings(float_model(tmp_path, nodes=nodes, arrays=arrays), "cpu", "alignment")
    arrays["odd"] = np.zeros(2001, np.int8)
    (found,) = findings(float_model(tmp_path, nodes=nodes, arrays=arrays, alignment=1), "cpu", "alignment")
    assert (found.level, found.where) == ("problem", "table")


def test_every_rule_is_described() -> None:
    root = Path(__file__).parents[2]
    sources = "".join(file.read_text(encoding="utf-8") for file in (root / "lint").glob("*.py"))
    rules = set(re.findall(r'subject\.(?:problem|note)\(\s*"([a-z0-9-]+)"', sources))
    page = (root / "docs" / "targets.md").read_text(encoding="utf-8")
    assert len(rules) > 12
    assert {rule for rule in rules if f"| `{rule}`" not in page} == set()
