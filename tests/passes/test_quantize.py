"""The pass quantize: what it stores, and that ONNX Runtime computes with exactly that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from language_model import NUMPY, Model, ids, run
from stored import operators, ranges

from onnx_tailor import pipeline, recipe
from onnx_tailor.errors import ModelError, UsageError
from onnx_tailor.graph.file.load import load
from onnx_tailor.passes.quantize import Quantize
from onnx_tailor.quant import BlockFormat, quantize
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnx_tailor.report import Report

BODY = [
    f"/model/layers.{i}/{part}/MatMul" for i in (0, 1) for part in ("self_attn/v_proj", "mlp/up_proj", "mlp/down_proj")
]


def tailor(source: Path, out: Path, options: str = "", *, passes: Sequence[str] = (), target: str = "cpu") -> Report:
    """Run `quantize` with options in YAML's flow style, after other passes."""
    text = "recipe: 1\npasses: [" + "".join(f"{name}, " for name in passes) + f"quantize: {{{options}}}]\n"
    file = source.with_name("recipe.yaml")
    file.write_text(text)
    return pipeline.run(recipe.load(str(file)), source, out, target=target)


def changes(report: Report) -> dict[str, Change]:
    return {change.where: change for each in report.passes if each.name == "quantize" for change in each.changes}


def skips(report: Report) -> dict[str, Skip]:
    return {skip.where: skip for each in report.passes if each.name == "quantize" for skip in each.skips}


def close(found: dict[str, Any], wanted: dict[str, Any], dtype: str) -> None:
    """The sums run in another order, so the last digits of a type may differ, and nothing more."""
    limit = {"float32": 2e-6, "float16": 4e-3}[dtype]
    scale = np.abs(wanted["logits"].astype(np.float32)).max()
    difference = np.abs(found["logits"].astype(np.float32) - wanted["logits"].astype(np.float32)).max()
    assert difference <= limit * scale


FORMS = [
    pytest.param(bits, block, symmetric, dtype, id=f"{bits}bit-{block}-{'sym' if symmetric else 'asym'}-{dtype}")
    for bits in (2, 4, 8)
    for block in (16, 32, 128)
    for symmetric in (False, True)
    for dtype in ("float32", "float16")
]


@pytest.mark.parametrize(("bits", "block", "symmetric", "dtype"), FORMS)
def test_the_model_computes_with_the_stored_values(
    tmp_path: Path, bits: int, block: int, symmetric: bool, dtype: str
) -> None:
    """K is 48 and 80: padded blocks, odd numbers of blocks; every weight and the shared table are quantized."""
    spec = Model(dtype=dtype, bias=True)
    source = spec.save(tmp_path / "model.onnx")
    options = f"method: rtn, bits: {bits}, block_size: {block}, symmetric: {str(symmetric).lower()}"
    # A block larger than a row may not be worth its bytes in fp16; the pass then says so and leaves the weight.
    report = tailor(source, tmp_path / "out", options, passes=["tie-embeddings"])
    out = tmp_path / "out" / "model.onnx"
    stored = {each.node.name: each for each in operators(out, "MatMulNBits")}
    assert stored
    assert set(stored) | set(skips(report)) == {*BODY, "/lm_head/MatMul"}
    values: dict[str, Any] = {}
    for name, each in stored.items():
        assert each.attributes["bits"] == bits
        assert each.attributes["block_size"] == block
        assert (each.operands[2] is None) == symmetric
        key = "table" if "lm_head" in name else name.removeprefix("/model/").removesuffix("/MatMul").replace("/", ".")
        original = spec.values()[key]
        values[key] = each.dequantized(original.shape[1])
        fmt = BlockFormat(bits, block, symmetric, dtype)  # type: ignore[arg-type]
        expected = quantize(original.astype(np.float32), fmt, "rtn")
        assert np.array_equal(each.operands[0], expected.codes)
        assert np.array_equal(each.operands[1], expected.scales)
    feeds = {"input_ids": ids(spec)}
    reference = replace(spec, weights=values).save(tmp_path / "reference.onnx")
    if dtype == "float16":  # the dequantized values need more digits than a float16 weight has
        reference = replace(spec, weights=values, dtype="float32").save(tmp_path / "reference.onnx")
    close(run(out, feeds), run(reference, feeds), dtype)


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("options", ["bits: 4, symmetric: true", "bits: 8", "bits: 4"])
@pytest.mark.parametrize("columns", [48, 64])
def test_a_tied_table_is_quantized_once(tmp_path: Path, target: str, options: str, columns: int) -> None:
    spec = Model(columns=columns, vocabulary=300)
    source = spec.save(tmp_path / "model.onnx")
    report = tailor(source, tmp_path / "out", options, passes=["tie-embeddings"], target=target)
    out = tmp_path / "out" / "model.onnx"
    assert changes(report)["/lm_head/MatMul"].details["readers"] == 2
    (head,) = [each for each in operators(out, "MatMulNBits") if "lm_head" in each.node.name]
    codes = head.node.input[1]
    places = ranges(out)
    same = [name for name, place in places.items() if place == places[codes]]
    gathers = operators(out, "GatherBlockQuantized")
    if gathers:
        assert gathers[0].node.input[0] in same
    assert [place for name, place in places.items() if place[1] == places[codes][1]] == [places[codes]] * len(same)
    # The rows that the embedding yields are the head's own values, seen through a model that ends there.
    assert "GatherBlockQuantized" in target_operators(out) or TARGETS[target].layouts[0] == "plain"


def target_operators(path: Path) -> set[str]:
    return {node.op_type for node in load(path).nodes()}


@pytest.mark.parametrize("form", ["transpose", "separate", "gemm", "fused"])
@pytest.mark.parametrize("tie", [True, False])
def test_every_form_of_the_head_is_quantized(tmp_path: Path, form: Any, tie: bool) -> None:
    spec = Model(head=form)
    source = spec.save(tmp_path / "model.onnx")
    report = tailor(source, tmp_path / "out", "bits: 8", passes=["tie-embeddings"] * tie)
    shared = tie or form != "separate"
    (head,) = [c for c in changes(report).values() if c.details["role"] == "lm_head"]
    assert head.details["readers"] == (2 if shared else 1)
    assert "MatMul" not in target_operators(tmp_path / "out" / "model.onnx")
    feeds = {"input_ids": ids(spec)}
    before, after = run(source, feeds)["logits"], run(tmp_path / "out" / "model.onnx", feeds)["logits"]
    assert np.abs(after - before).max() < 0.02 * np.abs(before).max()


def test_an_untied_table_is_left_alone_unless_asked(tmp_path: Path) -> None:
    spec = Model(head="separate", weights={"lm_head": Model(vocabulary=70).values()["table"][::-1]})
    source = spec.save(tmp_path / "model.onnx")
    report = tailor(source, tmp_path / "out", "bits: 4", passes=["tie-embeddings"])
    assert "embeddings: true" in skips(report)["/model/embed_tokens/Gather"].reason
    assert not operators(tmp_path / "out" / "model.onnx", "GatherBlockQuantized")
    report = tailor(source, tmp_path / "asked", "bits: 4, embeddings: true")
    (table,) = operators(tmp_path / "asked" / "model.onnx", "GatherBlockQuantized")
    assert np.abs(table.dequantized(48) - spec.values()["table"]).max() < 0.1
    assert changes(report)["/model/embed_tokens/Gather"].details["role"] == "embedding"


def test_table_and_head_of_two_types_share_the_wider_scales(tmp_path: Path) -> None:
    """An fp16 table beside an fp32 head, as TorchScript and optimum write fp16 models."""
    table = Model().values()["table"].astype(np.float16)
    spec = Model(table_dtype="float16", weights={"table": table, "lm_head": table})
    source = spec.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", "bits: 4", passes=["tie-embeddings"])
    out = tmp_path / "out" / "model.onnx"
    (gather,) = operators(out, "GatherBlockQuantized")
    (head,) = [each for each in operators(out, "MatMulNBits") if "lm_head" in each.node.name]
    assert np.array_equal(gather.dequantized(48), head.dequantized(48))
    feeds = {"input_ids": ids(spec)}
    before, after = run(source, feeds)["logits"], run(out, feeds)["logits"]
    assert after.dtype == before.dtype == np.float32
    assert np.abs(after - before).max() < 0.3 * np.abs(before).max()


def test_bfloat16_is_read_and_scales_are_stored_in_it(tmp_path: Path) -> None:
    """The CPU provider runs no bfloat16 model, so what is stored is compared with the kernel's own answer."""
    spec = Model(dtype="bfloat16")
    source = spec.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", "bits: 4, method: rtn", passes=["tie-embeddings"], target="cuda")
    stored = {each.node.name: each for each in operators(tmp_path / "out" / "model.onnx", "MatMulNBits")}
    weight = spec.values()["layers.0.mlp.up_proj"]
    expected = quantize(weight.astype(np.float32), BlockFormat(4, 32, symmetric=False, scale_dtype="bfloat16"), "rtn")
    found = next(each for name, each in stored.items() if "layers.0/mlp/up_proj" in name)
    assert found.operands[1] is not None
    assert found.operands[1].dtype == NUMPY["bfloat16"]
    assert np.array_equal(found.operands[0], expected.codes)
    assert np.array_equal(found.operands[1], expected.scales)


def test_rules_apply_first_match_first(tmp_path: Path) -> None:
    source = Model().save(tmp_path / "model.onnx")
    rules = (
        'nodes: {"/lm_head/MatMul": skip, "*/mlp/down_proj/*": {bits: 8, layers: "1"}, '
        '"model.layers.0.mlp.down_proj.weight": {block_size: 16, symmetric: true}, "role:down": 2, "role:v": float}'
    )
    report = tailor(source, tmp_path / "out", f"bits: 4, {rules}", passes=["tie-embeddings"])
    found = {
        name: (c.details["bits"], c.details["block_size"], c.details["symmetric"])
        for name, c in changes(report).items()
    }
    assert found == {
        "/model/layers.1/mlp/down_proj/MatMul": (8, 32, False),
        "/model/layers.0/mlp/down_proj/MatMul": (4, 16, True),
        "/model/layers.0/mlp/up_proj/MatMul": (4, 32, False),
        "/model/layers.1/mlp/up_proj/MatMul": (4, 32, False),
    }
    assert set(skips(report)) == {"/lm_head/MatMul", *(name for name in BODY if "v_proj" in name)}
    assert all("in float" in skip.reason for skip in skips(report).values())


def test_float_leaves_what_no_rule_names(tmp_path: Path) -> None:
    source = Model().save(tmp_path / "model.onnx")
    report = tailor(source, tmp_path / "out", 'bits: float, nodes: {"role:lm_head": 4}', passes=["tie-embeddings"])
    assert set(changes(report)) == {"/lm_head/MatMul"}
    assert set(skips(report)) == set(BODY)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ('"*/no_such/*": 4', "3:24: quantize: pattern '*/no_such/*' matches no weight of this model; the nearest is"),
        (
            '"role:gate": 4',
            "3:24: quantize: pattern 'role:gate' matches no weight of this model; the nearest is 'role:",
        ),
        (
            '"*down*": {bits: 8, layers: "7-9"}',
            "3:24: quantize: pattern '*down*' matches no weight in layers 7-9 (the model has layers 0 to 1)",
        ),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_its_place(tmp_path: Path, rule: str, message: str) -> None:
    source = Model().save(tmp_path / "model.onnx")
    file = tmp_path / "recipe.yaml"
    file.write_text(f"recipe: 1\npasses:\n  - quantize: {{nodes: {{{rule}}}}}\n")
    with pytest.raises(UsageError) as error:
        pipeline.run(recipe.load(str(file)), source, tmp_path / "out")
    assert f"{file}:{message}" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_presets_give_the_head_and_some_layers_eight_bits(tmp_path: Path) -> None:
    """k_quant_mixed with 12 layers: i < 12/8, i >= 7*12/8 = 10.5, or (i - round(1.5)) % 3 == 2."""
    source = Model(layers=12).save(tmp_path / "model.onnx")
    for method in ("rtn_last", "k_quant_last"):
        report = tailor(source, tmp_path / method, f"method: {method}", passes=["tie-embeddings"])
        assert {n for n, c in changes(report).items() if c.details["bits"] == 8} == {"/lm_head/MatMul"}
    report = tailor(source, tmp_path / "mixed", "method: k_quant_mixed", passes=["tie-embeddings"])
    eight = {n for n, c in changes(report).items() if c.details["bits"] == 8}
    promoted = [0, 1, 4, 7, 10, 11]
    assert eight == {"/lm_head/MatMul"} | {
        f"/model/layers.{i}/{part}/MatMul" for i in promoted for part in ("self_attn/v_proj", "mlp/down_proj")
    }


def test_accuracy_level_is_written_only_when_asked(tmp_path: Path) -> None:
    source = Model().save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "none", "bits: 8")
    tailor(source, tmp_path / "four", "bits: 8, accuracy_level: 4")
    for name, level in (("none", None), ("four", 4)):
        stored = operators(tmp_path / name / "model.onnx", "MatMulNBits")
        assert [each.attributes.get("accuracy_level") for each in stored] == [level] * 7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named_with_its_place(tmp_path: Path, bad: float) -> None:
    up = Model().values()["layers.1.mlp.up_proj"]
    up[3, 17] = bad
    source = Model(weights={"layers.1.mlp.up_proj": up}).save(tmp_path / "model.onnx")
    with pytest.raises(
        ModelError, match=rf"weight model\.layers\.1\.mlp\.up_proj\.weight: holds {bad} at row 3, column 17"
    ):
        tailor(source, tmp_path / "out", "bits: 4")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data", "recipe.yaml"]


def test_a_weight_that_something_else_reads_stays(tmp_path: Path) -> None:
    """It would be stored twice: quantized for its product, in float for the other."""
    source = Model().save(tmp_path / "model.onnx")
    model = onnx.load(source, load_external_data=False)
    weight = next(node for node in model.graph.node if "0/mlp/up_proj" in node.name).input[1]
    model.graph.node.append(onnx.helper.make_node("ReduceSum", [weight], ["sum"], name="/sum", keepdims=0))
    model.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, []))
    source.write_bytes(model.SerializeToString())
    report = tailor(source, tmp_path / "out", "bits: 4")
    skip = skips(report)["/model/layers.0/mlp/up_proj/MatMul"]
    assert skip.reason == "ReduceSum /sum reads it too and needs its floats, so that it would be stored twice"
    before = sum(change.bytes_before - change.bytes_after for change in changes(report).values())
    assert abs(before - (report.before.weight_bytes - report.after.weight_bytes)) < 100  # shapes around the Gathers


@pytest.mark.parametrize("reader", ["Shape", "Size"])
def test_what_reads_a_shape_alone_is_no_reader(tmp_path: Path, reader: str) -> None:
    source = Model().save(tmp_path / "model.onnx")
    model = onnx.load(source, load_external_data=False)
    weight = next(node for node in model.graph.node if "0/mlp/up_proj" in node.name).input[1]
    model.graph.node.append(onnx.helper.make_node(reader, [weight], ["n"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT64, None))
    source.write_bytes(model.SerializeToString())
    assert "/model/layers.0/mlp/up_proj/MatMul" in changes(tailor(source, tmp_path / "out", "bits: 4"))


def test_a_weight_that_two_products_read_in_either_direction(tmp_path: Path) -> None:
    """Each is quantized along its own columns."""
    source = Model().save(tmp_path / "model.onnx")
    model = onnx.load(source, load_external_data=False)
    product = next(node for node in model.graph.node if "0/self_attn/v_proj" in node.name)
    other = onnx.helper.make_node("MatMul", [product.input[0], "turned"], ["more"], name="/other")
    turn = onnx.helper.make_node("Transpose", [product.input[1]], ["turned"], perm=[1, 0])
    at = list(model.graph.node).index(product)
    model.graph.node.insert(at, other)
    model.graph.node.insert(at, turn)
    model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, None))
    source.write_bytes(model.SerializeToString())
    assert {"/other", product.name} <= changes(tailor(source, tmp_path / "out", "bits: 8")).keys()


def test_layers_are_ranges_of_any_length(tmp_path: Path) -> None:
    source = Model().save(tmp_path / "model.onnx")
    report = tailor(source, tmp_path / "out", 'nodes: {"role:up": {bits: 8, layers: "1-99999999"}}')
    bits = {name: change.details["bits"] for name, change in changes(report).items() if "up_proj" in name}
    assert sorted(bits.values()) == [4, 8]


SECOND = {
    "bits: 4": [],
    'bits: 4, nodes: {"role:down": 8, "role:embedding": 8, "/model/layers.1/*": {bits: 8, layers: "1"}}': [
        "role:down",
        "role:embedding",
        "/model/layers.1/*",
    ],
    'bits: 8, format: qdq, block_size: 16, nodes: {"role:up": 4}': ["role:up"],
    "bits: auto, budget: 9 bpw": [],
    'bits: auto, budget: 16 bpw, nodes: {"role:v": float}': [],
}


@pytest.mark.parametrize("options", SECOND)
def test_a_second_time_changes_nothing(tmp_path: Path, options: str) -> None:
    """And says of entries whose weights are quantized already that they are."""
    source = Model().save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "once", options, passes=["tie-embeddings"])
    again = tailor(tmp_path / "once" / "model.onnx", tmp_path / "twice", options, passes=["tie-embeddings"])
    assert not [change for each in again.passes for change in each.changes]
    said = [skip.where for skip in again.passes[-1].skips if "what this entry of `nodes` names" in skip.reason]
    assert said == SECOND[options]
    with pytest.raises(UsageError, match=r"pattern 'role:q' matches no weight of this model"):
        tailor(tmp_path / "once" / "model.onnx", tmp_path / "thrice", 'nodes: {"role:q": 8}')
    data = "model.onnx.data"
    assert (tmp_path / "once" / data).read_bytes() == (tmp_path / "twice" / data).read_bytes()


def test_a_dry_pass_edits_nothing_it_skips(tmp_path: Path) -> None:
    """`match` decides and cannot edit: a model in which everything is skipped stays as it was, node by node."""
    model = load(Model().save(tmp_path / "model.onnx"))
    before = [(node.op_type, node.name) for node in model.nodes()]
    found = list(Quantize(bits="float").apply(model, TARGETS["cpu"]))
    assert all(isinstance(each, Skip) for each in found)
    assert [(node.op_type, node.name) for node in model.nodes()] == before
