"""Every form in which a table and a head may stand, written as text, tied, and run before and after."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnx_tailor import pipeline, recipe
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.tables.token_tables import find_tables
from onnx_tailor.passes.tie_embeddings import TieEmbeddings
from onnx_tailor.report import Change, Report, Skip
from onnx_tailor.verify.compare import compare
from onnx_tailor.verify.tokens import random_tokens

V, K = 40, 16
TABLE = np.random.default_rng(3).standard_normal((V, K), np.float32)
HALF = TABLE.astype(np.float16)
BIAS = np.random.default_rng(4).standard_normal(V).astype(np.float32)
IDS = np.array([[3, 39, 0, 7, 21]])
INPUTS = "int64[b, s] input_ids"
OUTPUTS = "float[b, s, 40] logits"


def build(
    path: Path,
    body: str,
    weights: dict[str, np.ndarray],
    *,
    inputs: str = INPUTS,
    outputs: str = OUTPUTS,
    opset: int = 18,
    domains: str = '"com.microsoft" : 1',
    functions: str = "",
) -> Path:
    kinds = {"float32": "float", "float16": "float16", "int64": "int64"}
    declared = ", ".join(
        f"{kinds[value.dtype.name]}[{', '.join(map(str, value.shape))}] {name}" for name, value in weights.items()
    )
    text = f"""<ir_version: 8, opset_import: ["" : {opset}, {domains}]>
    model ({inputs}) => ({outputs}) <{declared}> {{ {body} }}
    {functions}"""
    model = onnx.parser.parse_model(text)
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.save(model, path)
    return path


def tie(model: Path, **options: bool) -> tuple[Path, Report]:
    out = model.parent / "out"
    report = pipeline.run(recipe.of_passes([TieEmbeddings(**options)]), model, out)
    return out / model.name, report


def outputs(model: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, feeds or {"input_ids": IDS})


def results(report: Report) -> tuple[list[Change], list[Skip]]:
    (only,) = report.passes
    return list(only.changes), list(only.skips)


def copies(model: Path, elements: int = V * K) -> list[tuple[int, ...]]:
    """The shapes of the weights as large as the table that the file holds."""
    return [
        tuple(t.dims) for t in onnx.load(model).graph.initializer if np.prod(t.dims) >= elements and t.data_type != 7
    ]


def assert_tied(model: Path, expected_copies: int = 1, **feeds: np.ndarray) -> Report:
    tied, report = tie(model)
    changes, skips = results(report)
    assert changes, skips
    assert len(copies(tied)) == expected_copies
    for before, after in zip(outputs(model, **feeds), outputs(tied, **feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=2e-5, atol=2e-5)
    again = pipeline.run(recipe.of_passes([TieEmbeddings()]), tied, model.parent / "again")
    assert not results(again)[0]
    assert (model.parent / "again" / tied.name).read_bytes() == tied.read_bytes()
    return report


GATHER = "h = Gather(E, input_ids)"
COPY = {"E": TABLE, "W": TABLE.T.copy()}
FORMS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "MatMul with a transposed copy": (f"{GATHER} logits = MatMul(h, W)", COPY),
    "Transpose of the table": (f"{GATHER} T = Transpose<perm=[1, 0]>(E) logits = MatMul(h, T)", {"E": TABLE}),
    "Transpose with no perm": (f"{GATHER} T = Transpose(E) logits = MatMul(h, T)", {"E": TABLE}),
    "table stored transposed": ("T = Transpose(W) h = Gather(T, input_ids) logits = MatMul(h, W)", {"W": COPY["W"]}),
    "Identity and Cast on the table": (
        "I = Identity(E) C = Cast<to=1>(I) h = Gather(C, input_ids) T = Transpose(I) logits = MatMul(h, T)",
        {"E": TABLE},
    ),
    "Einsum with the table": (f'{GATHER} logits = Einsum<equation="bsk,vk->bsv">(h, E)', {"E": TABLE}),
    "Einsum with a copy": (f'{GATHER} logits = Einsum<equation="...k, kv -> ...v">(h, W)', COPY),
    "Gemm between Reshapes": (
        f"{GATHER} flat = Reshape(h, rows) g = Gemm(flat, W, B) logits = Reshape(g, whole)",
        {**COPY, "B": BIAS, "rows": np.array([-1, K]), "whole": np.array([1, -1, V])},
    ),
    "Add behind the head": (f"{GATHER} m = MatMul(h, W) logits = Add(m, B)", {**COPY, "B": BIAS}),
    "scaled embeddings and a soft cap": (
        f"{GATHER} x = Mul(h, S) m = MatMul(x, W) d = Div(m, S) t = Tanh(d) logits = Mul(t, S)",
        {**COPY, "S": np.array([4.0], np.float32)},
    ),
    "Reshape on the indices": (
        "flat = Reshape(input_ids, rows) g = Gather(E, flat) h = Unsqueeze(g, axis) logits = MatMul(h, W)",
        {**COPY, "rows": np.array([-1]), "axis": np.array([0])},
    ),
    "ids chosen by Where": (
        "ok = Less(input_ids, most) ids = Where(ok, input_ids, pad) h = Gather(E, ids) logits = MatMul(h, W)",
        {**COPY, "most": np.array([30]), "pad": np.array([0])},
    ),
    "If around the head": (
        (
            f"{GATHER} c = Constant<value = bool {{1}}>() logits = If<then_branch = a () => (float[b, s, 40] x) "
            "{ x = MatMul(h, W) }, else_branch = d () => (float[b, s, 40] y) { y = MatMul(h, W) }>(c)"
        ),
        COPY,
    ),
    "two Gathers": (
        f"{GATHER} g = Gather(E, input_ids) x = Add(h, g) T = Transpose(E) logits = MatMul(x, T)",
        {"E": TABLE},
    ),
    "two tables and a head, three copies": (
        f"{GATHER} g = Gather(F, input_ids) x = Add(h, g) logits = MatMul(x, W)",
        {**COPY, "F": TABLE},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_tied_with_equal_outputs(form: str, tmp_path: Path) -> None:
    body, weights = FORMS[form]
    assert_tied(build(tmp_path / "model.onnx", body, weights))


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("y = MatMul(h, W) logits = Transpose<perm = [0, 2, 1]>(y)", "float[b, 40, s] logits"),
        ("y = MatMul(h, W) scale = Exp(T) logits = Mul(y, scale)", OUTPUTS),
        ("y = MatMul(h, W) token = ArgMax<axis = -1, keepdims = 0>(y)", "int64[b, s] token"),
        ("y = MatMul(h, W) value, token = TopK(y, five)", "float[b, s, 5] value, int64[b, s, 5] token"),
    ],
)
def test_what_stands_behind_a_head(body: str, output: str, tmp_path: Path) -> None:
    more = {"T": np.full(1, 0.5, np.float32), "five": np.array([5])}
    assert_tied(build(tmp_path / "model.onnx", f"{GATHER} {body}", {**COPY, **more}, outputs=output))


ZEROS = "n = Shape(input_ids) none = ConstantOfShape(n) whole = Cast<to = 7>(none) m = Less(input_ids, two)"


@pytest.mark.parametrize("ids", [f"{ZEROS} ids = Where(m, whole, input_ids)", "ids = Sub(input_ids, zero)"])
def test_ids_that_constants_move(ids: str, tmp_path: Path) -> None:
    more = {"two": np.array([2]), "zero": np.array([0])}
    body = f"{ids} h = Gather(E, ids) logits = MatMul(h, W)"
    assert_tied(build(tmp_path / "model.onnx", body, {**COPY, **more}))


@pytest.mark.parametrize("opset", [13, 14, 17, 21, 23, 24])
def test_every_opset(opset: int, tmp_path: Path) -> None:
    body, weights = FORMS["MatMul with a transposed copy"]
    assert_tied(build(tmp_path / "model.onnx", body, weights, opset=opset))


def test_fused_matmul_reads_the_table_as_it_lies(tmp_path: Path) -> None:
    body = f"{GATHER} logits = com.microsoft.FusedMatMul<transB=1>(h, E)"
    tied, report = tie(build(tmp_path / "model.onnx", body, {"E": TABLE}))
    assert results(report)[1][0].reason == "it is tied already"
    assert len(copies(tied)) == 1


def test_a_half_table_and_a_float_head_keep_the_half(tmp_path: Path) -> None:
    body = "g = Gather(E, input_ids) h = Cast<to=1>(g) logits = MatMul(h, W)"
    weights = {"E": HALF, "W": HALF.astype(np.float32).T.copy()}
    report = assert_tied(build(tmp_path / "model.onnx", body, weights))
    change = results(report)[0][0]
    assert change.bytes_before - change.bytes_after == V * K * 4
    assert change.bytes_after == V * K * 2


def test_a_float_table_and_a_rounded_head_keep_the_float(tmp_path: Path) -> None:
    body = f"{GATHER} x = Cast<to=10>(h) m = MatMul(x, W) logits = Cast<to=1>(m)"
    model = build(tmp_path / "model.onnx", body, {"E": TABLE, "W": HALF.T.copy()})
    tied, report = tie(model)
    change = results(report)[0][0]
    assert "after the cast" in change.details["proof"]
    assert copies(tied) == [(V, K)]
    np.testing.assert_allclose(outputs(tied)[0], outputs(model)[0], rtol=4e-3, atol=4e-3)


def test_three_copies_are_one(tmp_path: Path) -> None:
    body, weights = FORMS["two tables and a head, three copies"]
    report = assert_tied(build(tmp_path / "model.onnx", body, weights))
    change = results(report)[0][0]
    assert change.bytes_before == 3 * change.bytes_after


def test_a_padded_head_gives_its_rows_to_the_table(tmp_path: Path) -> None:
    padded = np.concatenate([TABLE, np.zeros((8, K), np.float32)])
    model = build(
        tmp_path / "model.onnx",
        f"{GATHER} m = MatMul(h, W) logits = Add(m, B)",
        {"E": TABLE, "W": padded.T.copy(), "B": np.arange(48, dtype=np.float32)},
        outputs="float[b, s, 48] logits",
    )
    report = assert_tied(model)
    assert "8 rows more in one are padding" in results(report)[0][0].details["proof"]


@pytest.mark.parametrize("bias", [False, True])
def test_a_padded_table_is_cut_behind_the_head(bias: bool, tmp_path: Path) -> None:
    padded = np.concatenate([TABLE, np.ones((8, K), np.float32)])
    rest = (
        "flat = Reshape(h, rows) g = Gemm(flat, W, B) logits = Reshape(g, whole)" if bias else "logits = MatMul(h, W)"
    )
    weights = {"E": padded, "W": TABLE.T.copy()}
    if bias:
        weights |= {"B": BIAS, "rows": np.array([-1, K]), "whole": np.array([1, -1, V])}
    assert_tied(build(tmp_path / "model.onnx", f"{GATHER} {rest}", weights))


def test_other_values_are_not_tied_and_the_worst_is_named(tmp_path: Path) -> None:
    other = TABLE.copy()
    other[7, 5] += 0.5
    tied, report = tie(build(tmp_path / "model.onnx", f"{GATHER} logits = MatMul(h, W)", {**COPY, "W": other.T.copy()}))
    changes, skips = results(report)
    assert not changes
    assert skips[0].details == pytest.approx({"largest_difference": 0.5, "row": 7, "column": 5})
    assert len(copies(tied)) == 2


def test_a_padded_table_of_other_values_is_not_tied(tmp_path: Path) -> None:
    padded = np.concatenate([TABLE[::-1], np.ones((8, K), np.float32)])
    _, report = tie(build(tmp_path / "model.onnx", f"{GATHER} logits = MatMul(h, W)", {"E": padded, "W": COPY["W"]}))
    changes, skips = results(report)
    assert not changes
    assert "(of 40 and 48 rows)" in skips[0].reason


def test_only_equal_values_count_in_bfloat16(tmp_path: Path) -> None:
    rounded = TABLE.astype(ml_dtypes.bfloat16).astype(np.float32)
    _, report = tie(
        build(tmp_path / "model.onnx", f"{GATHER} logits = MatMul(h, W)", {"E": TABLE, "W": rounded.T.copy()})
    )
    assert not results(report)[0]


@pytest.mark.parametrize("name", ["position_ids", "input_3"])
def test_learned_positions_are_no_token_table(name: str, tmp_path: Path) -> None:
    positions = np.random.default_rng(5).standard_normal((12, K)).astype(np.float32)
    body = f"{GATHER} p = Gather(P, {name}) x = Add(h, p) logits = MatMul(x, W)"
    model = build(tmp_path / "model.onnx", body, {**COPY, "P": positions}, inputs=f"{INPUTS}, int64[b, s] {name}")
    assert [table.matrix.name for table in find_tables(load(model))] == ["E"]
    assert_tied(model, input_ids=IDS, **{name: np.array([[0, 1, 2, 3, 4]])})


def test_positions_counted_in_the_graph_are_no_token_table(tmp_path: Path) -> None:
    body = f"""{GATHER} shape = Shape(input_ids) last = Gather(shape, one) n = Squeeze(last)
        r = Range(zero, n, step) p = Gather(P, r) x = Add(h, p) logits = MatMul(x, W)"""
    whole = {"one": np.array([1]), "zero": np.array(0), "step": np.array(1)}
    model = build(tmp_path / "model.onnx", body, {**COPY, **whole, "P": TABLE[::-1].copy()})
    assert [table.matrix.name for table in find_tables(load(model))] == ["E"]


def test_a_second_table_of_the_same_ids_is_left_alone(tmp_path: Path) -> None:
    other = np.random.default_rng(6).standard_normal((V, K)).astype(np.float32)
    body = f"{GATHER} g = Gather(F, input_ids) x = Mul(h, g) logits = MatMul(x, W)"
    assert_tied(build(tmp_path / "model.onnx", body, {**COPY, "F": other}), expected_copies=2)


def test_a_head_on_the_last_token(tmp_path: Path) -> None:
    body = f"{GATHER} x = Slice(h, begin, end, axis) y = MatMul(x, W) logits = Squeeze(y, axis)"
    weights = {**COPY, "begin": np.array([-1]), "end": np.array([9]), "axis": np.array([1])}
    assert_tied(build(tmp_path / "model.onnx", body, weights, outputs="float[b, 40] logits"))


def test_a_head_of_two_dimensions(tmp_path: Path) -> None:
    body = "h = Gather(E, input_ids) logits = Gemm(h, W)"
    model = build(tmp_path / "model.onnx", body, COPY, inputs="int64[s] input_ids", outputs="float[s, 40] logits")
    assert_tied(model, input_ids=IDS[0])


def test_weights_inside_constant_nodes(tmp_path: Path) -> None:
    model = onnx.load(build(tmp_path / "plain.onnx", f"{GATHER} logits = MatMul(h, W)", COPY))
    constants = [
        onnx.helper.make_node("Constant", [], [weight.name], value=weight) for weight in model.graph.initializer
    ]
    nodes = list(model.graph.node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend([*constants, *nodes])
    onnx.save(model, tmp_path / "model.onnx")
    assert_tied(tmp_path / "model.onnx")


def test_weights_read_in_function_bodies(tmp_path: Path) -> None:
    functions = """
    <domain: "pkg.model", opset_import: ["" : 18]>
    head (x, w) => (y) { y = MatMul(x, w) }
    <domain: "pkg.model", opset_import: ["" : 18]>
    double (x) => (y) { y = Add(x, x) }"""
    body = f"{GATHER} x = pkg.model.double(h) logits = pkg.model.head(x, W)"
    domains = '"com.microsoft" : 1, "pkg.model" : 1'
    model = build(tmp_path / "model.onnx", body, COPY, domains=domains, functions=functions)
    assert_tied(model)
    assert [function.name for function in onnx.load(tmp_path / "out" / "model.onnx").functions] == ["double"]


def test_a_custom_domain_is_left_alone(tmp_path: Path) -> None:
    body = f"{GATHER} x = someone.else.Secret<level=3>(h) logits = MatMul(x, W)"
    model = build(tmp_path / "model.onnx", body, COPY, domains='"someone.else" : 2')
    tied, report = tie(model)
    assert results(report)[0]
    after = onnx.load(tied)
    (secret,) = [node for node in after.graph.node if node.domain == "someone.else"]
    assert secret.op_type == "Secret"
    assert {each.domain: each.version for each in after.opset_import}["someone.else"] == 2


def test_logits_of_another_name_are_found_by_their_vocabulary(tmp_path: Path) -> None:
    key = np.random.default_rng(8).standard_normal((K, K)).astype(np.float32)
    body = f"{GATHER} present = MatMul(h, P) scores = MatMul(h, W)"
    outputs_ = "float[b, s, 16] present, float[b, s, 40] scores"
    report = assert_tied(build(tmp_path / "model.onnx", body, {**COPY, "P": key}, outputs=outputs_))
    assert [skip.where for skip in results(report)[1]] == []


def test_forced_values_are_the_tables(tmp_path: Path) -> None:
    model = build(tmp_path / "model.onnx", f"{GATHER} logits = MatMul(h, W)", {**COPY, "W": 2 * COPY["W"]})
    tied, report = tie(model, force=True)
    assert results(report)[0][0].details["proof"].startswith("FORCED")
    np.testing.assert_allclose(outputs(tied)[0], outputs(model)[0] / 2, rtol=1e-5, atol=1e-5)


def test_a_copy_that_something_else_reads_is_not_saved(tmp_path: Path) -> None:
    body = f"{GATHER} logits = MatMul(h, W) largest = ReduceMax<keepdims = 0>(W)"
    model = build(tmp_path / "model.onnx", body, COPY, outputs=f"{OUTPUTS}, float largest")
    tied, report = tie(model)
    (change,) = results(report)[0]
    assert (change.bytes_before, change.bytes_after) == (V * K * 4, V * K * 4)
    assert outputs(tied)[1] == outputs(model)[1]


def test_values_that_are_rounded_on_the_way_are_others(tmp_path: Path) -> None:
    body = f"{GATHER} t = Transpose<perm = [1, 0]>(E) n = Cast<to = 10>(t) w = Cast<to = 1>(n) logits = MatMul(h, w)"
    tied, report = tie(build(tmp_path / "model.onnx", body, {"E": TABLE}))
    (skip,) = results(report)[1]
    assert "rounded to FLOAT16 before it is cast to FLOAT" in skip.reason
    np.testing.assert_array_equal(outputs(tied)[0], outputs(tmp_path / "model.onnx")[0])


def test_a_long_chain_before_a_weight(tmp_path: Path) -> None:
    """Longer than the interpreter's stack is deep."""
    chain = " ".join(f"w{i + 1} = Identity(w{i})" for i in range(1500))
    body = f"{GATHER} w0 = Identity(W) {chain} logits = MatMul(h, w1500)"
    assert_tied(build(tmp_path / "model.onnx", body, COPY))


def test_what_is_forced_is_the_nearest_table(tmp_path: Path) -> None:
    """Of two tables one is proved, or none is."""
    body = "a = Gather(A, input_ids) b = Gather(B, input_ids) h = Add(a, b) w = Cast<to = 1>(W) logits = MatMul(h, w)"
    weights = {"A": COPY["E"] + 1, "B": COPY["E"], "W": np.ascontiguousarray(HALF.T)}
    proved, report = tie(build(tmp_path / "model.onnx", body, weights), force=True)
    assert results(report)[0][0].details["proof"] == "all values equal after the cast that separates them"
    np.testing.assert_allclose(outputs(proved)[0], outputs(tmp_path / "model.onnx")[0], rtol=1e-2, atol=1e-2)
    weights["W"] += np.float16(0.25)
    (tmp_path / "other").mkdir()
    _, report = tie(build(tmp_path / "other" / "model.onnx", body, weights), force=True)
    change = results(report)[0][0]
    assert (change.details["table"], change.details["proof"].split(":")[0]) == ("B", "FORCED")


@pytest.mark.parametrize("nested", [False, True])
def test_two_heads_and_a_table_behind_a_cast(nested: bool, tmp_path: Path) -> None:
    """Tying the first moves the Gather that the second is tied with."""
    body = "e = Cast<to = 1>(E) h = Gather(e, input_ids)"
    weights = {"E": HALF, "W": np.ascontiguousarray(HALF.T, np.float32)}
    if nested:
        branches = [f"{n} = one{n} () => (float[b, s, 40] y{n}) {{ y{n} = MatMul(h, W) }}" for n in "ab"]
        then, other = (branch.split(" = ", 1)[1] for branch in branches)
        body += f" logits = If<then_branch = {then}, else_branch = {other}>(first)"
        model = build(tmp_path / "model.onnx", body, weights, inputs=f"{INPUTS}, bool first")
        _, report = tie(model)
        for first in (True, False):
            feeds = {"input_ids": IDS, "first": np.array(first)}
            want, got = outputs(model, **feeds), outputs(tmp_path / "out" / "model.onnx", **feeds)
            np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
    else:
        weights["X"] = weights["W"].copy()
        body += " one = MatMul(h, W) two = MatMul(h, X)"
        both = "float[b, s, 40] one, float[b, s, 40] two"
        report = assert_tied(build(tmp_path / "model.onnx", body, weights, outputs=both))
    assert len(results(report)[0]) == 2
    assert copies(tmp_path / "out" / "model.onnx") == [(V, K)]


EXPORTS = Path(__file__).parents[1] / "fixtures" / "exports"


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("dynamo-llama-fp32/model.onnx", True),
        ("dynamo-lfm2-fp32/model.onnx", True),
        ("torchscript-phi3-fp32/model.onnx", False),
        ("torchscript-t5-fp32/model.onnx", True),
        ("optimum-past-qwen3-moe-fp32/model.onnx", False),
        ("optimum-past-bart-fp32/decoder_model_merged.onnx", True),
        ("optimum-past-bart-fp32/decoder_with_past_model.onnx", True),
    ],
)
def test_real_exports(name: str, tied: bool, tmp_path: Path) -> None:
    model, out = EXPORTS / name, tmp_path / "out"
    report = pipeline.run(recipe.of_passes([TieEmbeddings()]), model, out)
    changes, skips = results(report)
    assert bool(changes) == tied, skips
    if not tied:
        assert "its values differ from the table" in skips[0].reason
    compared = compare(model, out / model.name, random_tokens(384, windows=1, length=8))
    assert all(each.max_rel < 1e-5 for each in compared.outputs)
    again = pipeline.run(recipe.of_passes([TieEmbeddings()]), out / model.name, tmp_path / "again")
    assert not results(again)[0]
