"""Every layout of a quantized table, run in ONNX Runtime: its rows are MatMulNBits' and numpy's, bit for bit."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantized_models import FLOATS, IDS, LAYOUTS, Case, build, convert, feeds, possible, run, weights

from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.tables.read_block_table import FoundTable, Unread, find_block_tables
from onnx_tailor.graph.tables.token_tables import find_tables
from onnx_tailor.quant import BlockFormat, ErrorSums, Quantized, dequantize

if TYPE_CHECKING:
    from pathlib import Path

# Even blocks; odd blocks; odd blocks with a padded row; even blocks with a padded row.
COLUMNS = (64, 96, 80, 112)


CASES = [
    Case(bits, symmetric, dtype, k)
    for bits, symmetric, dtype, k in product((2, 4, 8), (True, False), ("float32", "float16"), COLUMNS)
]
FORMS = [(case, layout) for case in CASES for layout in LAYOUTS if possible(case, layout)]


def found(path: Path) -> FoundTable:
    (only,) = find_block_tables(load(path))
    assert isinstance(only, FoundTable), only
    return only


def check(case: Case, path: Path, layout: str, ids: np.ndarray = IDS) -> None:
    table = weights(case).values
    rows, head = run(path, feeds(case, ids))
    stored = table.astype(FLOATS[case.dtype])
    assert np.array_equal(head.T, stored)
    if layout == "correction":
        check_correction(case, rows, ids)
    else:
        assert np.array_equal(rows, stored[ids])


def check_correction(case: Case, rows: np.ndarray, ids: np.ndarray) -> None:
    """Three numbers are rounded where the operator rounds one: each is off by half a unit in the last place."""
    w = weights(case)
    unit = np.finfo(FLOATS[case.dtype]).eps / 2
    largest = np.abs(w.scales.astype(np.float64)).repeat(case.block, axis=1)[:, : case.k] * (1 << case.bits - 1)
    bound = unit * (2 * largest + np.abs(w.values))
    error = np.abs(rows.astype(np.float64) - w.values[ids])
    assert (error <= bound[ids]).all()
    assert (error <= 3 * unit * largest[ids] + unit * np.abs(w.values[ids])).all()


@pytest.mark.parametrize(("case", "layout"), FORMS, ids=str)
def test_rows_are_those_of_matmulnbits(tmp_path: Path, case: Case, layout: str) -> None:
    check(case, convert(build(tmp_path, case), tmp_path, layout), layout)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numpy_and_quant_agree(case: Case) -> None:
    w = weights(case)
    fmt = BlockFormat(case.bits, case.block, case.symmetric, case.dtype)
    assert np.array_equal(dequantize(Quantized(w.codes, w.scales, w.points, ErrorSums()), case.k, fmt), w.values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (4, False), (4, True), (8, False)])
@pytest.mark.parametrize("k", [64, 80])
def test_a_layout_is_read_as_what_it_is(tmp_path: Path, layout: str, bits: int, symmetric: bool, k: int) -> None:
    case = Case(bits, symmetric, k=k)
    if not possible(case, layout):
        pytest.skip("cannot be written")
    before = found(build(tmp_path, case))
    path = convert(tmp_path / "model.onnx", tmp_path, layout)
    after = found(path)
    assert (after.layout, after.faults) == (layout, ())
    for field in ("rows", "blocks", "columns", "bits", "block_size", "form"):
        assert getattr(after.table, field) == getattr(before.table, field)


@pytest.mark.parametrize(
    "case", [Case(4, k=96, v=512), Case(2, k=80, v=512), Case(8, dtype="float16", k=80, v=512)], ids=str
)
def test_layouts_lead_into_each_other(tmp_path: Path, case: Case) -> None:
    way = ("plain", "alias", "correction", "plain", "shared", "reshape", "correction", "alias")
    way = [layout for layout in way if possible(case, layout)]
    path = convert(build(tmp_path, case), tmp_path, *way)
    check(case, path, "alias")
    assert found(path).layout == "alias"
    codes, scales = weights(case).codes.nbytes, weights(case).scales.nbytes
    assert path.with_name("model.onnx.data").stat().st_size < 4 * 4096 + codes + 3 * scales


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), ("n",), ("a", "b", "c"), None], ids=str)
@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.INT64])
def test_ids_of_any_rank(tmp_path: Path, layout: str, shape: tuple[str, ...] | None, dtype: int) -> None:
    case = Case(2, symmetric=layout == "shared", k=80, ids_shape=shape, ids_dtype=dtype)
    ids = IDS if shape is None else np.arange(2 ** len(shape)).reshape((2,) * len(shape))
    check(case, convert(build(tmp_path, case), tmp_path, layout), layout, ids)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_plain_runs_in_bfloat16(tmp_path: Path, bits: int, symmetric: bool) -> None:
    # The CPU has no GatherBlockQuantized and no MatMulNBits in bfloat16, so the rows alone are run.
    case = Case(bits, symmetric, "bfloat16", k=80, head=False)
    path = convert(build(tmp_path, case), tmp_path, "plain")
    import onnx

    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("Cast", ["rows"], ["wide"], to=TensorProto.FLOAT))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("wide", TensorProto.FLOAT, None))
    onnx.save(model, path)
    (rows,) = run(path, feeds(case))
    assert np.array_equal(rows, weights(case).values.astype(FLOATS["bfloat16"]).astype(np.float32)[IDS])
    assert found(path).layout == "plain"


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_scales_of_a_plain_table_are_no_tokens_rows(tmp_path: Path, symmetric: bool) -> None:
    case = Case(4, symmetric, v=512, k=96)
    made = convert(build(tmp_path, case), tmp_path, "plain")
    model = load(made)
    assert [found.layout for found in find_block_tables(model) if isinstance(found, FoundTable)] == ["plain"]
    assert find_tables(model) == []


@pytest.mark.parametrize("layout", ["alias", "shared", "plain"])
def test_a_cut_of_whole_blocks_is_no_padding(tmp_path: Path, layout: str) -> None:
    """Somebody reads the first half of the rows; the table has all of its columns for all that."""
    case = Case(4, symmetric=True, k=128)
    path = convert(build(tmp_path, case), tmp_path, layout)
    model = onnx.load(path, load_external_data=False)
    rows = next(node for node in model.graph.node if "rows" in node.output)
    rows.output[0] = "whole"
    bounds = {"from": 0, "to": 64, "axis": -1}
    model.graph.initializer.extend(helper.make_tensor(n, TensorProto.INT64, [1], [at]) for n, at in bounds.items())
    model.graph.node.append(helper.make_node("Slice", ["whole", *bounds], ["rows"]))
    model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = 64
    path.write_bytes(model.SerializeToString())
    (found,) = find_block_tables(load(path))
    assert isinstance(found, FoundTable)
    assert found.table.columns == 128
    for other in ("alias", "shared", "plain"):
        (tmp_path / other).mkdir()
        again = convert(path, tmp_path / other, other)
        for before, after in zip(run(path, feeds(case)), run(again, feeds(case)), strict=True):
            assert np.array_equal(before, after)


@pytest.mark.parametrize("layout", ["shared", "plain"])
def test_rows_that_are_joined_otherwise_are_not_read(tmp_path: Path, layout: str) -> None:
    """A Reshape that flattens the ids as well yields other rows than a Gather does."""
    case = Case(4, symmetric=True, k=64)
    path = convert(build(tmp_path, case), tmp_path, layout)
    model = onnx.load(path, load_external_data=False)
    join = next(node for node in model.graph.node if node.op_type == "Reshape" and "rows" in node.output)
    (shape,) = (tensor for tensor in model.graph.initializer if tensor.name == join.input[1])
    shape.CopyFrom(helper.make_tensor(shape.name, TensorProto.INT64, [2], [-1, 64]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 64]))
    path.write_bytes(model.SerializeToString())
    run(path, feeds(case))
    (found,) = find_block_tables(load(path))
    assert isinstance(found, Unread)
    assert found.reason == "the blocks of its rows are not joined by a Reshape to [..., 64]"
