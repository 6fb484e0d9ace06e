"""Files that others broke: mended where the meaning is certain, named where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from quantized_models import Case, build, feeds, run, weights

from onnx_tailor import pipeline, recipe
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.tables.read_block_table import FoundTable, Unread, find_block_tables
from onnx_tailor.report import Change, Skip

FIXTURE = Path(__file__).parents[1] / "fixtures" / "genai-int4-asymmetric" / "model.onnx"
Edit = Callable[[onnx.ModelProto, onnx.NodeProto], None]


def edited(folder: Path, case: Case, edit: Edit) -> Path:
    path = build(folder, case)
    model = onnx.load(path, load_external_data=False)
    (node,) = (n for n in model.graph.node if n.op_type == "GatherBlockQuantized")
    edit(model, node)
    path.write_bytes(model.SerializeToString())
    return path


def tailor(model: Path, out: Path) -> tuple[Path, list[Change | Skip]]:
    text = out.with_suffix(".yaml")
    text.write_text("recipe: 1\npasses: [reshape-dim]\n")
    report = pipeline.run(recipe.load(str(text)), model, out)
    return out / model.name, [*report.passes[0].changes, *report.passes[0].skips]


def without(*names: str) -> Edit:
    def edit(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
        kept = [a for a in node.attribute if a.name not in names]
        del node.attribute[:]
        node.attribute.extend(kept)

    return edit


def written(name: str, value: int) -> Edit:
    def edit(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
        without(name)(model, node)
        node.attribute.append(helper.make_attribute(name, value))

    return edit


def flat(*dims: int) -> Edit:
    """Let the Reshape in front of the codes yield these dimensions."""

    def edit(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == "flat")
        tensor.CopyFrom(helper.make_tensor("flat", onnx.TensorProto.INT64, [len(dims)], dims))

    return edit


def inputs(*names: str) -> Edit:
    def edit(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
        del node.input[:]
        node.input.extend(names)

    return edit


MENDED = [
    (Case(8), without("bits"), "the attribute bits is missing"),
    (Case(8), without("bits", "block_size", "gather_axis", "quantize_axis"), "the attribute block_size is missing"),
    (Case(2, block=16), without("block_size", "bits"), "the attribute bits is missing"),
    (Case(8), written("bits", 4), "the attribute bits is 4, but its codes have 8"),
    (Case(4), written("block_size", 64), "the attribute block_size is 64, but its codes have 32"),
    (Case(8), flat(8, 32), "its flat data are [8, 32], but 8 bits in blocks of 32 make [8, 64]"),
    (Case(4), flat(8, 64), "its flat data are [8, 64], but 4 bits in blocks of 32 make [8, 32]"),
    (Case(4), inputs("nowhere", "ids", "table_scales", "table_points"), "its data nowhere do not exist"),
    (Case(4), inputs("table_q", "ids"), "its scales are missing"),
    (Case(4), inputs("table_flat", "ids", "table_scales"), "it has no zero points, but the head on the same codes has"),
]


@pytest.mark.parametrize(("case", "edit", "fault"), MENDED)
def test_what_is_certain_is_mended(tmp_path: Path, case: Case, edit: Edit, fault: str) -> None:
    path, (change,) = tailor(edited(tmp_path, case, edit), tmp_path / "out")
    assert isinstance(change, Change)
    assert fault in " ".join(change.details["faults"])
    assert change.details["certainty"]
    rows, head = run(path, feeds(case))
    assert np.array_equal(rows, weights(case).values[feeds(case)["ids"]])
    assert np.array_equal(head.T, weights(case).values)
    _, (skip,) = tailor(path, tmp_path / "again")
    assert isinstance(skip, Skip)


def beside_float_points(edit: Edit) -> Edit:
    """Give the head float zero points, with which no table can be read, before another edit."""

    def edited(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
        (head,) = (n for n in model.graph.node if n.op_type == "MatMulNBits")
        (scales,) = (t for t in model.graph.initializer if t.name == "table_scales")
        model.graph.initializer.append(numpy_helper.from_array(np.full(scales.dims, 1.5, np.float32), "float_points"))
        head.input[3] = "float_points"
        edit(model, node)

    return edited


def float_data(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Read a float weight in the place of codes."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 64), np.float32), "table"))
    node.input[0] = "table"


NAMED = [
    (Case(4, head=False), inputs("nowhere", "ids", "table_scales"), "do not exist, and 0 heads read its scales"),
    (Case(4, head=False), written("block_size", 64), "do not fit 8 rows of 1 blocks"),
    (Case(4, head=False), written("gather_axis", 1), "gathers along another axis"),
    (Case(4, head=False), written("bits", 3), "has 3 bits"),
    (Case(4, head=False), inputs("table_flat", "ids", "table_scales", "ids"), "zero points are no stored"),
    (Case(4, head=False), inputs("table_flat", "", "table_scales"), "has no indices"),
    (Case(4), inputs("table_flat", "ids", "table_scales", "table_q"), "its zero points [8, 2, 16] are not packed"),
    (
        Case(4),
        beside_float_points(inputs("nowhere", "ids", "table_scales")),
        "do not exist, and no table can read the head /lm_head on its scales: its zero points are floats",
    ),
    (
        Case(4),
        beside_float_points(float_data),
        "are a float weight, float[8, 64], and no codes, and no table can read the head /lm_head: its zero points are",
    ),
    (
        Case(2, k=256, block=256),
        beside_float_points(without("bits", "block_size")),  # the defaults, 4 and 128, would fit the shapes as well
        "the head /lm_head reads its codes with 2 bits in blocks of 256, but its zero points are floats",
    ),
]


def test_a_table_that_says_all_itself_is_read_beside_float_zero_points(tmp_path: Path) -> None:
    """The kernel takes its own integer zero points, whatever the head on the same codes has."""
    path = edited(tmp_path, Case(4), beside_float_points(lambda model, node: None))
    (found,) = find_block_tables(load(path))
    assert isinstance(found, FoundTable)
    assert not found.faults
    mended, (change,) = tailor(path, tmp_path / "out")
    assert isinstance(change, Change)
    for before, after in zip(run(path, feeds(Case(4))), run(mended, feeds(Case(4))), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize(("case", "edit", "reason"), NAMED)
def test_what_is_not_certain_is_named(tmp_path: Path, case: Case, edit: Edit, reason: str) -> None:
    (found,) = find_block_tables(load(edited(tmp_path, case, edit)))
    assert isinstance(found, Unread)
    assert reason in found.reason


def test_the_builders_asymmetric_tied_export_is_mended(tmp_path: Path) -> None:
    import onnxruntime as ort

    with pytest.raises(Exception, match="Type Error"):
        ort.InferenceSession(FIXTURE, providers=["CPUExecutionProvider"])
    (found,) = find_block_tables(load(FIXTURE))
    assert isinstance(found, FoundTable)
    assert "all 32768 elements have the nearest code" in found.certainty
    path, (change,) = tailor(FIXTURE, tmp_path / "out")
    assert isinstance(change, Change)
    assert path.with_name("model.onnx.data").stat().st_size < FIXTURE.with_name("model.onnx.data").stat().st_size / 2

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = np.array([[5, 9, 300]], np.int64)
    empty = np.zeros((1, 1, 0, 32), np.float32)
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    values |= {v.name: empty for v in session.get_inputs() if v.name.startswith("past")}
    (logits,) = session.run(["logits"], values)
    assert logits.shape == (1, 3, 512)
    assert np.isfinite(logits).all()


def test_a_float_table_that_is_another_weight_is_named(tmp_path: Path) -> None:
    data = tmp_path / "model.onnx.data"
    content = bytearray(FIXTURE.with_name("model.onnx.data").read_bytes())
    model = onnx.load(FIXTURE, load_external_data=False)
    (weight,) = (t for t in model.graph.initializer if t.name == "lm_head.MatMul.weight")
    place = {e.key: e.value for e in weight.external_data}
    start = int(place["offset"]) + 4 * (7 * 512 + 13)  # row 13 of the table, column 7: the weight is stored [K, V]
    content[start : start + 4] = np.float32(0.5).tobytes()
    data.write_bytes(content)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (found,) = find_block_tables(load(tmp_path / "model.onnx"))
    assert isinstance(found, Unread)
    assert "1 of 32768 elements have another code than the nearest" in found.reason
    assert "at row 13, column 7" in found.reason
