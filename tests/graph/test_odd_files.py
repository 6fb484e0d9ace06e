"""What looks broken in a stranger's file and is not: it is read, and left alone or rewritten rightly."""

from __future__ import annotations

from pathlib import Path

import attention_model
import handmade
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from onnx_tailor.cli import app


def test_what_only_looks_like_ours_is_left_alone(tmp_path: Path) -> None:
    """Operators of another domain called as ONNX Runtime's are, text as a weight, data entries of other tools."""

    def edit(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("other", 1))
        for op_type in ("MatMulNBits", "MoE", "GatherBlockQuantized", "GroupQueryAttention", "Gather"):
            model.graph.node.append(helper.make_node(op_type, [], [op_type], domain="other"))
        model.graph.node.append(helper.make_node("MatMul", ["h0", "words"], ["odd"], name="odd"))

    path = handmade.decoder(tmp_path / "m.onnx", edit=edit)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="note", value="of another tool")
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"]))
    path.write_bytes(model.SerializeToString())
    for command in (["inspect", str(path)], ["run", "rtn", str(path), "-o", str(tmp_path / "out")]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "Warning" not in result.stderr


def test_arithmetic_that_only_looks_like_a_table_is_left_alone(tmp_path: Path) -> None:
    """The nodes of the layout `plain` over codes of another shape, or over zero points that a caller may feed."""
    path = handmade.decoder(tmp_path / "m.onnx", rows=32, columns=32)
    made = ["run", "rtn", str(path), "-o", str(tmp_path / "made"), "--target", "portable"]
    assert CliRunner().invoke(app, made).exit_code == 0
    written = onnx.load(tmp_path / "made" / "m.onnx")
    codes = next(each for each in written.graph.initializer if each.name == "model.embed_tokens.weight_q4")
    for number, edit in enumerate(("shape", "input")):
        model = onnx.ModelProto.FromString(written.SerializeToString())
        if edit == "shape":
            handmade.weight(model, codes.name).dims[:] = [16, 1, 32]
        else:
            name = codes.name.replace("q4", "zero_points")
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.UINT8, [32, 1]))
        folder = tmp_path / str(number)
        folder.mkdir()
        onnx.save(model, folder / "m.onnx")
        for command in (["lint", str(folder)], ["run", "rtn", str(folder), "-o", str(tmp_path / f"out{number}")]):
            result = CliRunner().invoke(app, command)
            assert "Traceback" not in result.stderr
            assert result.exit_code == 0 or command[0] == "lint", result.stderr


def test_metadata_of_other_tools_is_no_receipt(tmp_path: Path) -> None:
    for number, text in enumerate(["[" * 100_000, "{", "7", "[7]"]):
        path = handmade.decoder(
            tmp_path / str(number) / "m.onnx",
            edit=lambda model, text=text: model.metadata_props.add(key="onnx-tailor", value=text),  # type: ignore[misc]
        )
        for command in (["inspect", str(path)], ["run", "rtn", str(path), "-o", str(tmp_path / f"out{number}")]):
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 0, result.stderr


def test_what_a_file_says_about_a_weight_is_not_believed(tmp_path: Path) -> None:
    """The types of the rewritten values follow from the weight's own."""

    def edit(model: onnx.ModelProto) -> None:
        name = model.graph.initializer[0].name
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, [7]))

    path = handmade.decoder(tmp_path / "m.onnx", edit=edit)
    result = CliRunner().invoke(app, ["run", "tie", str(path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    sound = handmade.decoder(tmp_path / "sound" / "m.onnx")
    np.testing.assert_allclose(handmade.logits(tmp_path / "out" / "m.onnx"), handmade.logits(sound), rtol=1e-5)


def test_a_constant_without_a_name_is_nothing(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Constant", [], [""], value=handmade.weight(model)))

    path = handmade.decoder(tmp_path / "m.onnx", data=None, edit=edit)
    result = CliRunner().invoke(app, ["run", "tie", str(path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output


def test_odd_divisions_and_attributes_are_read(tmp_path: Path) -> None:
    """A Split with fewer sizes than outputs, and text where another operator has a number."""
    layer = attention_model.Layer().save(tmp_path / "m.onnx")
    model = onnx.load(layer, load_external_data=False)
    split = next(node for node in model.graph.node if node.op_type == "Split")
    split.output.append("one_more")
    gather = helper.make_node("GatherBlockQuantized", ["x", "x"], ["rows"], domain="com.microsoft", N="text")
    model.graph.node.append(gather)
    layer.write_bytes(model.SerializeToString())
    for command in (["inspect", str(layer)], ["run", "unpack-rtn", str(layer), "--dry-run"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("version", [17, 18, 21])
def test_a_function_of_another_version_that_means_the_same(tmp_path: Path, version: int) -> None:
    """MatMul has meant the same since version 13."""

    def edit(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", version)]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        model.functions.append(helper.make_function("f", "Linear", ["x", "w"], ["y"], [node], opsets))
        model.opset_import.append(helper.make_opsetid("f", 1))
        model.graph.node[1].op_type, model.graph.node[1].domain = "Linear", "f"

    path = handmade.decoder(tmp_path / "m.onnx", edit=edit)
    result = CliRunner().invoke(app, ["run", "rtn", str(path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    written = onnx.load(tmp_path / "out" / "m.onnx", load_external_data=False)
    assert not written.functions
    assert [node.op_type for node in written.graph.node].count("MatMul") == 0


def test_nodes_in_any_order_are_put_in_order(tmp_path: Path) -> None:
    """Some writers leave nodes unsorted; ONNX Runtime reads them, and so do we."""

    def reverse(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)[::-1]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    path = handmade.decoder(tmp_path / "m.onnx", edit=reverse)
    result = CliRunner().invoke(app, ["run", "tie", str(path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(str(tmp_path / "out" / "m.onnx"))
