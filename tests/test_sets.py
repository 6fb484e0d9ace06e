"""A folder of models is one set: what is equal lies on one byte range, and every model still computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(recipe: str, folder: Path, out: Path, *options: object) -> Result:
    result = call("run", recipe, folder, "-o", out, *options)
    assert result.exit_code == 0, result.output
    for file in out.glob("*.onnx"):
        onnx.checker.check_model(str(file))
    return result


def encoder(path: Path) -> Path:
    """Write a model that only gathers rows of the table of `handmade.decoder`."""
    weight = numpy_helper.from_array(handmade.table(), "shared.weight")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["shared.weight", "input_ids"], ["logits"])],
        "encoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", handmade.WIDTH])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def merged(path: Path) -> Path:
    """Write a decoder whose body stands in both branches of an If, each with its own copy of every weight."""
    branches: dict[str, Any] = {}
    for name in ("then_branch", "else_branch"):
        body = handmade.decoder_proto().graph
        del body.input[:]
        renamed = {t.name: f"{name}.{t.name}" for t in body.initializer} | {"logits": f"{name}.logits"}
        for tensor in body.initializer:
            tensor.name = renamed[tensor.name]
        for node in body.node:
            node.input[:] = [renamed.get(each, each) for each in node.input]
            node.output[:] = [renamed.get(each, f"{name}.{each}") for each in node.output]
            node.input[:] = [
                f"{name}.{each}" if each[0] in "hm" and each[1:].isdigit() else each for each in node.input
            ]
            node.name = f"{name}{node.name}"
        body.output[0].name = renamed["logits"]
        branches[name] = body
    graph = helper.make_graph(
        [helper.make_node("If", ["use_cache"], ["logits"], **branches)],
        "merged",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("use_cache", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", handmade.VOCABULARY])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a set in which every weight stands in several files, embedded, outside and transposed."""
    made = tmp_path / "set"
    handmade.decoder(made / "decoder_model.onnx", data=None)
    handmade.decoder(made / "decoder_with_past_model.onnx", data="past.data")
    encoder(made / "encoder_model.onnx")
    merged(made / "decoder_model_merged.onnx")
    return made


TABLE = handmade.VOCABULARY * handmade.WIDTH * 4
LAYERS = 2 * handmade.WIDTH**2 * 4


def outputs(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.arange(12, dtype=np.int64).reshape(2, 6)
    if len(session.get_inputs()) == 1:
        return list(session.run(None, {"input_ids": ids}))
    return [session.run(None, {"input_ids": ids, "use_cache": np.array(flag)})[0] for flag in (True, False)]


@pytest.mark.parametrize(("recipe", "tolerance"), [("tie", 1e-5), ("rtn-8bit", 0.5)])
@pytest.mark.parametrize("options", [[], ["--data-per-model"], ["--max-shard-size", "30kB"]])
def test_every_model_of_a_set_computes_the_same(
    tmp_path: Path, folder: Path, recipe: str, tolerance: float, options: list[str]
) -> None:
    before = handmade.contents(folder)
    run(recipe, folder, tmp_path / "out", *options)
    for name in sorted(file.name for file in folder.glob("*.onnx")):
        for expected, found in zip(outputs(folder / name), outputs(tmp_path / "out" / name), strict=True):
            assert np.abs(expected - found).max() < tolerance
    assert handmade.contents(folder) == before
    assert call("check", tmp_path / "out").exit_code == 0


def test_a_set_shrinks_to_the_bytes_of_its_unique_weights(tmp_path: Path, folder: Path) -> None:
    report = json.loads(run("tie", folder, tmp_path / "out", "--json").stdout)
    assert sorted(file.name for file in (tmp_path / "out").iterdir() if ".onnx" not in file.name) == [
        "tailor-report.json",
        "weights.data",
    ]
    assert (tmp_path / "out" / "weights.data").stat().st_size == TABLE + LAYERS  # both whole pages
    small = sum(tensor for tensor in (8 * 4,))  # the shapes around the Gemms
    assert TABLE + LAYERS <= report["after"]["weight_bytes"] < TABLE + LAYERS + 40 * small
    assert report["after"]["parameters"] == (TABLE + LAYERS) // 4


def test_a_quantized_weight_is_shared_with_its_transposed_copy(tmp_path: Path, folder: Path) -> None:
    """Untied, the table [V, K] and the head [K, V] quantize to the same codes, in all models."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text("recipe: 1\npasses:\n  - quantize: {bits: 8, block_size: 32, method: rtn, embeddings: true}\n")
    run(str(recipe), folder, tmp_path / "out")
    codes = (TABLE + LAYERS) // 4
    assert codes < (tmp_path / "out" / "weights.data").stat().st_size < 1.6 * codes


def test_the_table_of_an_encoder_is_quantized_with_the_head_that_it_is(tmp_path: Path, folder: Path) -> None:
    report = json.loads(run("rtn-last", folder, tmp_path / "out", "--json").stdout)
    details = [
        change["details"]
        for each in report["passes"]
        if each["name"] == "quantize"
        for change in each["changes"]
        if change["details"]["role"] in {"lm_head", "embedding"}
    ]
    assert [each["role"] for each in details].count("embedding") == 1
    assert {each["bits"] for each in details} == {8}  # the head's, as `rtn-last` says
    assert len({each["relative_error"] for each in details}) == 1
    codes = (TABLE + LAYERS) // 4
    assert codes / 2 < (tmp_path / "out" / "weights.data").stat().st_size < 1.3 * codes


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_table_of_one_file_and_the_head_of_another_in_standard_operators(tmp_path: Path, symmetric: bool) -> None:
    """Rows are unpacked from unsigned codes, whatever the head has."""
    encoder(tmp_path / "embed_tokens.onnx")
    head = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["logits"])],
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", handmade.WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", handmade.VOCABULARY])],
        [numpy_helper.from_array(np.ascontiguousarray(handmade.table().T), "W")],
    )
    onnx.save(helper.make_model(head, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "decoder.onnx")
    recipe = tmp_path / "r.yaml"
    options = f"bits: 8, format: qdq, symmetric: {str(symmetric).lower()}"
    recipe.write_text(f"recipe: 1\npasses:\n  - quantize: {{{options}}}\n")
    report = json.loads(run(str(recipe), tmp_path, tmp_path / "out", "--json").stdout)
    reasons = [skip["reason"] for skip in report["passes"][1]["skips"]]
    assert [("whose head in decoder.onnx is stored" in reason) for reason in reasons] == [True] * symmetric
    ids = {"input_ids": np.array([[0, 5, 95]])}
    before, after = (
        onnxruntime.InferenceSession(str(folder / "embed_tokens.onnx")).run(None, ids)[0]
        for folder in (tmp_path, tmp_path / "out")
    )
    assert np.abs(after - before).max() < 0.02


def test_a_data_file_for_each_model(tmp_path: Path, folder: Path) -> None:
    run("tie", folder, tmp_path / "out", "--data-per-model")
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "out").glob("*.data")}
    assert sizes == {
        "decoder_model.onnx.data": TABLE + LAYERS,
        "past.data": TABLE + LAYERS,
        "encoder_model.onnx.data": TABLE,
        "decoder_model_merged.onnx.data": TABLE + LAYERS,
    }


def test_one_data_file_that_a_set_has_already_keeps_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    handmade.decoder(folder / "a.onnx", data="common.bin")
    handmade.decoder(folder / "b.onnx", data="common.bin")
    run("tie", folder, tmp_path / "out")
    assert (tmp_path / "out" / "common.bin").stat().st_size == TABLE + LAYERS
    run("tie", folder, tmp_path / "each", "--data-per-model")
    assert sorted(file.name for file in (tmp_path / "each").glob("*.data")) == ["a.onnx.data", "b.onnx.data"]


def test_shards_are_named_as_transformers_js_looks_for_them(tmp_path: Path) -> None:
    path = handmade.decoder(tmp_path / "in" / "model.onnx", data="model.onnx_data")
    run("tie", path, tmp_path / "out", "--max-shard-size", "30kB")
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "out").glob("*_data*")}
    assert sizes == {"model.onnx_data": TABLE, "model.onnx_data_1": handmade.WIDTH**2 * 4, "model.onnx_data_2": 16384}
    assert np.array_equal(handmade.logits(tmp_path / "out" / "model.onnx"), _tied(tmp_path, path))


def _tied(tmp_path: Path, path: Path) -> np.ndarray:
    run("tie", path, tmp_path / "whole")
    return handmade.logits(tmp_path / "whole" / "model.onnx")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("10kB", "has 24576 bytes, more than a shard may have (10000)"),
        ("many", "'many' is no size; write it as 2GB, 500MB or 1GiB"),
        ("0", "'0' is no size"),
        ("-5MB", "'-5MB' is no size"),
    ],
)
def test_a_shard_size_that_cannot_be_kept(tmp_path: Path, size: str, message: str) -> None:
    path = handmade.decoder(tmp_path / "in" / "model.onnx")
    result = call("run", "tie", path, "-o", tmp_path / "out", "--max-shard-size", size)
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in"]


def test_a_part_of_one_models_weights_with_the_name_of_anothers(tmp_path: Path) -> None:
    for name, data in (("a", "w"), ("b", "w_1")):
        handmade.decoder(tmp_path / "in" / f"{name}.onnx", data=data, rows=500)
    options = ["-o", tmp_path / "out", "--data-per-model", "--max-shard-size", "130kB"]
    result = call("run", "tie", tmp_path / "in", *options)
    assert result.exit_code == 2
    assert "w_1: would be the name of a part of w and of other weights" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_forecast_is_what_is_written(tmp_path: Path, folder: Path) -> None:
    expected = json.loads(call("run", "rtn", folder, "--dry-run", "--json").stdout)["forecast"]
    run("rtn", folder, tmp_path / "out")
    found = {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir() if file.suffix != ".json"}
    assert expected["file_bytes"].keys() == found.keys()
    for name, size in found.items():
        more = size - expected["file_bytes"][name]
        if name.endswith(".onnx"):
            metadata = onnx.load(tmp_path / "out" / name, load_external_data=False).metadata_props
            more -= sum(each.ByteSize() + 3 for each in metadata if each.key.startswith("onnx-tailor"))  # its receipt
        assert more == 0
    assert expected["disk_bytes"] > sum(found.values())


def test_models_in_one_file_that_differ_in_one_element_are_not_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "set"

    def change(model: onnx.ModelProto) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            (tensor,) = [t for t in model.graph.initializer if t.name == name]
            values = numpy_helper.to_array(tensor).copy()
            place = (50, 30) if name.startswith("model") else (30, 50)
            values[place] += 1
            tensor.raw_data = values.tobytes()

    handmade.decoder(folder / "a.onnx")
    handmade.decoder(folder / "b.onnx", data=None, edit=change)
    run("tie", folder, tmp_path / "out")
    assert (tmp_path / "out" / "weights.data").stat().st_size == 2 * TABLE + LAYERS
    for name in ("a.onnx", "b.onnx"):
        assert np.allclose(handmade.logits(tmp_path / "out" / name), handmade.logits(folder / name), atol=1e-5)
