"""What a stranger's broken file gets: one sentence, exit status 1, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import handmade
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from onnx_tailor.cli import app

Edit = Callable[[onnx.ModelProto], None]


def refused(model: Path, out: Path) -> str:
    """Run and inspect the model as a user would; return what standard error says."""
    before = {} if not model.exists() or not model.is_file() else handmade.contents(model.parent)
    result = CliRunner().invoke(app, ["run", "rtn", str(model), "-o", str(out)])
    assert result.exit_code == 1, result.output
    assert not out.exists()
    assert list(out.parent.glob(f".{out.name}*")) == []
    assert not before or handmade.contents(model.parent) == before
    inspected = CliRunner().invoke(app, ["inspect", str(model)])
    assert (inspected.exit_code, inspected.stderr) == (1, result.stderr)
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def external(**fields: object) -> Edit:
    """Return an edit that gives the head other external-data fields, over a file of its right size."""
    sizes = {"location": "model.onnx.data", "offset": 0, "length": handmade.VOCABULARY * handmade.WIDTH * 4}

    def edit(model: onnx.ModelProto) -> None:
        handmade.refer(handmade.weight(model), **{**sizes, **fields})

    return edit


def shape(*dims: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        handmade.weight(model).dims[:] = dims

    return edit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; export or download it again"),
        (b"# a text\n" * 100, "not an ONNX model, or cut off"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer"),
        (onnx.ModelProto(ir_version=9).SerializeToString(), "it has no IR version, graph or opset"),
    ],
)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert message in refused(tmp_path / "m.onnx", tmp_path / "out")


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "none.onnx: cannot be read (No such file or directory)" in refused(tmp_path / "none.onnx", out)
    (tmp_path / "empty").mkdir()
    assert "the folder holds no .onnx file" in refused(tmp_path / "empty", out)
    (tmp_path / "empty" / "model.onnx").mkdir()
    assert "is no ordinary file" in refused(tmp_path / "empty", out)
    os.mkfifo(tmp_path / "fifo.onnx")
    assert "is no ordinary file" in refused(tmp_path / "fifo.onnx", out)
    assert "is no ordinary file" in refused(Path("/dev/zero"), out)
    (tmp_path / "circle.onnx").symlink_to("circle.onnx")
    assert "circle.onnx: cannot be read (" in refused(tmp_path / "circle.onnx", out)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (external(location="/etc/passwd"), "data location '/etc/passwd' is not inside the model's folder"),
        (external(location="../secret"), "data location '../secret' is not inside the model's folder"),
        (external(location=""), "data location '' is not inside the model's folder"),
        (external(location="a\0b"), "is not inside the model's folder"),
        (external(location="link"), "is a link out of the model's folder"),
        (external(location="missing"), "is missing; put it beside the ONNX file"),
        (external(location="folder"), "is no ordinary file"),
        (external(location="fifo"), "is no ordinary file"),
        (external(location="short"), "but the file has 100; it is cut off or belongs to another model"),
        (external(location="x" * 5000), "cannot be "),
        (external(offset=-1), "offset '-1'"),
        (external(offset="one"), "offset 'one'"),
        (external(offset=2**64), "cut off or belongs to another model"),
        (external(length=-4), "length '-4', which is no number"),
        (external(length=2**70), f"says {2**70}"),
        (external(length=12), "24576 bytes, but its data entry says 12"),
        (shape(-96, 64), "negative shape [-96, 64]"),
        (shape(2**62, 2**62), "but its data entry says 24576"),
        (shape(96, 64, 2), "but its data entry says 24576"),
        (shape(), "but its data entry says 24576"),
    ],
)
def test_data_that_cannot_be_read(tmp_path: Path, edit: Edit, message: str) -> None:
    folder = tmp_path / "model"
    path = handmade.decoder(folder / "model.onnx")
    (tmp_path / "secret").write_bytes(bytes(100_000))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "short").write_bytes(bytes(100))
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    model = onnx.load(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())
    assert message in _run(path, tmp_path / "out")


def _run(path: Path, out: Path) -> str:
    """Like `refused`, where the folder holds what cannot be compared."""
    result = CliRunner().invoke(app, ["run", "tie", str(path), "-o", str(out)])
    assert result.exit_code == 1, result.output
    assert not out.exists()
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "h2"


def _transposes_in_a_circle(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Transpose", ["b"], ["a"], name="t1"))
    model.graph.node.append(helper.make_node("Transpose", ["a"], ["b"], name="t2"))
    model.graph.node[-3].input[1] = "b"


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "h0"


def _typed_too_short(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="t", data_type=TensorProto.FLOAT, dims=[5])
    tensor.float_data.extend([1.0, 2.0])


def _raw_too_short(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="t", data_type=TensorProto.INT64, dims=[2], raw_data=b"1234567")


def _huge_and_empty(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="t", data_type=TensorProto.INT64, dims=[2**40])


def _unknown_type(model: onnx.ModelProto) -> None:
    handmade.weight(model).data_type = 999


def _undefined_type(model: onnx.ModelProto) -> None:
    handmade.weight(model).data_type = 0


def _no_default_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].domain = "com.example"


def _unknown_input(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_cycle, "form a circle"),
        (_transposes_in_a_circle, "form a circle"),
        (_twice, "m.onnx: "),
        (_typed_too_short, "weight t"),
        (_raw_too_short, "weight t"),
        (_huge_and_empty, "weight t"),
        (_unknown_type, "m.onnx: "),
        (_undefined_type, "weight lm_head.weight"),
        (_no_default_opset, "no version of the ONNX operators"),
        (_unknown_input, "'nowhere', which nothing in the graph yields"),
    ],
)
def test_graphs_that_mean_nothing(tmp_path: Path, edit: Edit, message: str) -> None:
    path = handmade.decoder(tmp_path / "m.onnx", data=None, edit=edit)
    assert message in refused(path, tmp_path / "out")


def _functions(model: onnx.ModelProto, calls: list[tuple[str, list[str]]]) -> None:
    """Add functions of the domain `f`, each of which calls others one after the other, and call the last."""
    model.opset_import.append(helper.make_opsetid("f", 1))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    for name, called in calls:
        nodes = [helper.make_node("MatMul", ["x", "x"], ["v0"])]
        nodes += [helper.make_node(each, [f"v{i}"], [f"v{i + 1}"], domain="f") for i, each in enumerate(called)]
        model.functions.append(helper.make_function("f", name, ["x"], [f"v{len(called)}"], nodes, opsets))
    model.graph.node.append(helper.make_node(calls[-1][0], ["h0"], ["called"], domain="f"))


def test_functions_without_end(tmp_path: Path) -> None:
    path = handmade.decoder(tmp_path / "m.onnx", data=None, edit=lambda m: _functions(m, [("a", ["b"]), ("b", ["a"])]))
    assert "calls itself, so that it never ends" in refused(path, tmp_path / "out")


def test_functions_that_would_fill_the_memory(tmp_path: Path) -> None:
    """Each of 40 calls the one before ten times."""
    calls = [(f"f{i}", [f"f{i - 1}"] * 10 if i else []) for i in range(40)]
    path = handmade.decoder(tmp_path / "m.onnx", data=None, edit=lambda m: _functions(m, calls))
    assert "stands for more than 10,000,000 nodes" in refused(path, tmp_path / "out")


def _latin(model: onnx.ModelProto) -> None:
    model.graph.node[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="UNTEXT")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = handmade.decoder(tmp_path / "m.onnx", data=None, edit=_latin)
    path.write_bytes(path.read_bytes().replace(b"UNTEXT", b"\xff\xfeTEXT"))
    assert "a name in the graph is no text" in refused(path, tmp_path / "out")


def test_two_outputs_of_one_head(tmp_path: Path) -> None:
    """The head is tied once, for both."""

    def second(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Identity", ["logits"], ["logits_again"]))
        output = model.graph.output.add()
        output.CopyFrom(model.graph.output[0])
        output.name = "logits_again"

    path = handmade.decoder(tmp_path / "m.onnx", edit=second)
    result = CliRunner().invoke(app, ["run", "tie", str(path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(str(tmp_path / "out" / "m.onnx"))


def _no_weight(model: onnx.ModelProto) -> None:
    del model.graph.node[1].input[1]


def _empty_input(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[1] = ""


def _axis_of_text(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("axis", "zero"))


def _cast_to_nothing(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["logits"], ["cast"]))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_no_weight, "the MatMul node /model/layers.0/mlp/down_proj/MatMul has 1 inputs and 1 outputs, fewer than"),
        (_empty_input, "lacks an input that it must have"),
        (_axis_of_text, "the Gather node /embed/Gather has the attribute axis of the type STRING"),
        (_cast_to_nothing, "the Cast node (no name) lacks the attribute to"),
    ],
)
def test_nodes_that_their_operator_does_not_allow(tmp_path: Path, edit: Edit, message: str) -> None:
    path = handmade.decoder(tmp_path / "m.onnx", data=None, edit=edit)
    assert message in refused(path, tmp_path / "out")


def _branch_without_outputs(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [])
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    model.graph.node[-1].output[0] = "one"
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["logits"], name="if", then_branch=branch, else_branch=branch)
    )


def _mixture_without_experts(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("MoE", ["h0"], ["mixed"], name="moe", domain="com.microsoft"))


def _branch_that_is_a_reference(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="If", name="if", input=["flag"], output=["chosen"])
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH, ref_attr_name="of_a_function")


def _function_that_gets_too_little(model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 18)]
    body = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model.functions.append(helper.make_function("f", "Linear", ["x", "w"], ["y"], body, opsets))
    model.opset_import.append(helper.make_opsetid("f", 1))
    node = model.graph.node[1]
    node.op_type, node.domain, node.input[:] = "Linear", "f", node.input[:1]


def _einsum_before_there_was_one(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9
    model.graph.node.append(helper.make_node("Einsum", ["h0", "h0"], ["summed"], name="sum"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_branch_without_outputs, "the If node if yields more values than the graph in its "),
        (
            _branch_that_is_a_reference,
            "the attribute then_branch of the If node if refers to a function's, but is in none",
        ),
        (_function_that_gets_too_little, "lacks an input that it must have"),
        (_mixture_without_experts, "the MoE node moe has 1 inputs and 1 outputs, fewer than"),
        (_einsum_before_there_was_one, "the Einsum node sum lacks the attribute equation"),
    ],
)
def test_nodes_found_by_the_fuzzer(tmp_path: Path, edit: Edit, message: str) -> None:
    path = handmade.decoder(tmp_path / "m.onnx", data=None, edit=edit)
    assert message in refused(path, tmp_path / "out")


def _without_values(model: onnx.ModelProto) -> None:
    handmade.weight(model).ClearField("raw_data")


def _text_without_values(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="words", data_type=TensorProto.STRING, dims=[3])


def _constant_of_no_type(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="t", data_type=-1, dims=[1], raw_data=b"1234")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def _sparse_weight_without_its_indices(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 99])
    model.graph.sparse_initializer.add(values=values, indices=indices, dims=[4])


def _more_than_a_float_holds(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="t", data_type=TensorProto.INT64, dims=[2**62] * 70, raw_data=b"12345678")


def _input_of_two_types(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("input_ids", TensorProto.FLOAT16, None))


def _text_outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="words", data_type=TensorProto.STRING, dims=[2])
    handmade.refer(tensor, location="m.onnx", offset=0, length=8)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_without_values, "weight lm_head.weight is FLOAT[64, 96], but its values are not so many"),
        (_text_without_values, "weight words is STRING[3], but its values are not so many"),
        (_constant_of_no_type, "weight t has no type"),
        (_sparse_weight_without_its_indices, "the sparse weight s cannot be read; store it dense"),
        (_more_than_a_float_holds, "but its values are not so many"),
        (_input_of_two_types, "'input_ids' is an input of one type and an output of another"),
        (_text_outside, "weight words is text, which cannot lie in a data file"),
    ],
)
def test_weights_found_by_the_fuzzer(tmp_path: Path, edit: Edit, message: str) -> None:
    path = handmade.decoder(tmp_path / "m.onnx", data=None, edit=edit)
    assert message in refused(path, tmp_path / "out")


def test_a_function_that_a_call_does_not_fit(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        _functions(model, [("a", [])])
        model.graph.node[-1].input.append("h0")

    path = handmade.decoder(tmp_path / "m.onnx", data=None, edit=edit)
    assert "its functions cannot be put in the place of their calls (" in refused(path, tmp_path / "out")
