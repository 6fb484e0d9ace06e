from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from gated_mlp import V, activations, mlp, weights
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from onnx_tailor.calibration.calibrate import calibrate
from onnx_tailor.calibration.capture import groups
from onnx_tailor.calibration.file import read
from onnx_tailor.calibration.inputs import ProjectionInput
from onnx_tailor.calibration.tokens import BUNDLED, TEXT, choose, unseen
from onnx_tailor.cli import app
from onnx_tailor.errors import ModelError, UsageError
from onnx_tailor.verify.facts import positions
from onnx_tailor.verify.tokens import random_tokens

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
TOKENS = random_tokens(V, windows=3, length=17)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_the_file_holds_what_numpy_computes(tmp_path: Path, external: bool, memory: int) -> None:
    w = weights()
    model = mlp(tmp_path / "m.onnx", w, external=external)
    report = calibrate(model, tmp_path / "c.npz", TOKENS, hessians=True, memory=memory)
    assert (report.inputs, report.runs) == (3, 3 if memory == 1 else 1)
    found = read(tmp_path / "c.npz")
    expected = activations(w, TOKENS.windows)
    assert list(found.inputs) == list(expected)
    for name, values in expected.items():
        x = values.reshape(-1, values.shape[-1])
        each = found.inputs[name]
        assert each.count == len(x) == TOKENS.windows.size
        np.testing.assert_allclose(each.mean_square(), np.mean(x**2, axis=0), rtol=2e-5)
        hessian = x.T @ x / len(x)
        np.testing.assert_allclose(each.hessian(), hessian, atol=2e-5 * hessian.max())
    assert found.tokens == TOKENS.windows.size
    assert found.random
    np.testing.assert_array_equal(found.token_counts(), np.bincount(TOKENS.windows.ravel()))


def test_a_model_whose_files_are_links_into_a_cache(tmp_path: Path) -> None:
    cache, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    cache.mkdir()
    snapshot.mkdir()
    mlp(cache / "m.onnx", weights(), external=True)
    for name in ("m.onnx", "m.onnx.data"):
        (cache / name).rename(cache / f"hash-{name}")
        (snapshot / name).symlink_to(cache / f"hash-{name}")
    assert calibrate(snapshot / "m.onnx", tmp_path / "c.npz", TOKENS).inputs == 3


def test_fp16_activations_are_summed_in_wider_types(tmp_path: Path) -> None:
    w = weights(dtype=np.float16)
    w["table"] *= 200  # squares beyond the largest fp16
    w["up"] /= 256
    calibrate(mlp(tmp_path / "m.onnx", w), tmp_path / "c.npz", TOKENS, hessians=True)
    x = w["table"].astype(np.float64)[TOKENS.windows.ravel()]
    each = read(tmp_path / "c.npz").inputs["hidden"]
    np.testing.assert_allclose(each.mean_square(), np.mean(x**2, axis=0), rtol=2e-5)
    np.testing.assert_allclose(np.diag(each.hessian()), np.mean(x**2, axis=0), rtol=2e-5)


def test_overflow_in_the_model_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    w = weights()
    w["up"] *= np.float32(1e30)
    w["down"] *= np.float32(1e30)
    with pytest.raises(ModelError, match=r"the input (gated|last) holds a NaN or an infinity in channel"):
        calibrate(mlp(tmp_path / "m.onnx", w), tmp_path / "c.npz", TOKENS)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def with_branches(tmp_path: Path) -> onnx.ModelProto:
    """The head stands in both branches of an If."""
    model = onnx.load(mlp(tmp_path / "m.onnx", weights()))
    branch = [
        helper.make_graph(
            [helper.make_node("MatMul", ["last", "head"], [f"out{n}"], name=f"branch{n}")],
            f"b{n}",
            [],
            [helper.make_tensor_value_info(f"out{n}", TensorProto.FLOAT, None)],
        )
        for n in (0, 1)
    ]
    head = model.graph.node.pop()
    assert head.name == "head"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((), np.bool_), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["logits"], then_branch=branch[0], else_branch=branch[1]))
    return model


def test_a_projection_in_a_subgraph_is_left_out_with_its_reason(tmp_path: Path) -> None:
    model = with_branches(tmp_path)
    onnx.save(model, tmp_path / "if.onnx")
    report = calibrate(tmp_path / "if.onnx", tmp_path / "c.npz", TOKENS)
    assert report.inputs == 2
    assert set(report.skipped) == {"branch0", "branch1"}
    assert "subgraph" in report.skipped["branch0"]


def test_weights_of_one_name_in_both_branches(tmp_path: Path) -> None:
    """Which of them a name means cannot be told, so that it tells no other model."""
    model = with_branches(tmp_path)
    random = np.random.default_rng(1)
    for attribute in model.graph.node[-1].attribute:
        own = numpy_helper.from_array(random.standard_normal((24, 53), np.float32), "own")
        attribute.g.initializer.append(own)
        attribute.g.node[0].input[1] = "own"
    onnx.save(model, tmp_path / "if.onnx")
    calibrate(tmp_path / "if.onnx", tmp_path / "c.npz", TOKENS)
    options = ["-o", str(tmp_path / "out"), "--set", f"quantize.calibration={tmp_path / 'c.npz'}"]
    done = CliRunner().invoke(app, ["run", "imatrix", str(tmp_path / "if.onnx"), *options])
    assert done.exit_code == 0, done.output


def test_a_model_with_nothing_but_branches_has_a_file_that_says_so(tmp_path: Path) -> None:
    model = with_branches(tmp_path)
    for node in [node for node in model.graph.node if node.op_type not in {"Gather", "If"}]:
        model.graph.node.remove(node)
    for node in model.graph.node:
        if node.op_type == "Gather":
            node.output[0] = "last"
    onnx.save(model, tmp_path / "if.onnx")
    report = calibrate(tmp_path / "if.onnx", tmp_path / "c.npz", TOKENS, hessians=True)
    assert (report.inputs, report.runs) == (0, 0)
    assert set(report.skipped) == {"branch0", "branch1"}
    assert set(read(tmp_path / "c.npz").skipped) == {"last"}  # the activation that both of them read


def test_groups_keep_to_the_memory_and_the_order() -> None:
    inputs = [ProjectionInput(None, columns, ()) for columns in (10, 10, 30, 10, 10, 10)]  # type: ignore[arg-type]
    cut = list(groups(inputs, 4 * 300))
    assert [[each.columns for each in group] for group in cut] == [[10, 10], [30], [10, 10, 10]]
    assert [each for group in cut for each in group] == inputs


def test_the_bundled_text_shares_nothing_with_the_one_that_measures() -> None:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[at : at + 12]) for at in range(len(words) - 11)}

    held_back = (EXAMPLE / "held-back.txt").read_text(encoding="utf-8")
    assert not runs(TEXT.read_text(encoding="utf-8")) & runs(held_back)


def test_the_tokens_by_default(tmp_path: Path) -> None:
    model = mlp(tmp_path / "m.onnx", weights())
    assert choose(model).random
    with_text = choose(EXAMPLE / "model.onnx")
    assert (with_text.random, with_text.source) == (False, BUNDLED)
    with pytest.raises(UsageError, match="no tokenizer"):
        choose(model, text=TEXT)
    with pytest.raises(UsageError, match="--tokens excludes"):
        choose(model, text=TEXT, tokens=tmp_path / "t.npy")


def test_the_tokenizer_and_the_config_above_a_folder_onnx(tmp_path: Path) -> None:
    """As transformers.js has a model, and most pages that offer one."""
    (tmp_path / "onnx").mkdir()
    for name, folder in (
        ("config.json", ""),
        ("tokenizer.json", ""),
        ("model.onnx", "onnx"),
        ("model.onnx.data", "onnx"),
    ):
        shutil.copy(EXAMPLE / name, tmp_path / folder / name)
    model = tmp_path / "onnx" / "model.onnx"
    assert choose(model).source == BUNDLED
    assert not unseen(model).random
    assert positions(model) == positions(EXAMPLE / "model.onnx")


def test_the_command(tmp_path: Path) -> None:
    model, out, tokens = mlp(tmp_path / "m.onnx", weights()), tmp_path / "c.npz", tmp_path / "t.npy"
    np.save(tokens, TOKENS.windows)
    call = ["calibrate", str(model), "-o", str(out), "--tokens", str(tokens), "--json"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["inputs"], report["tokens"], report["hessians"]) == (3, TOKENS.windows.size, False)
    again = CliRunner().invoke(app, call)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "it is no archive of arrays"), (b"PK\3\4rubbish", "zip"), (b"\x93NUMPY", "read")],
)
def test_a_file_that_is_no_calibration(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "c.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"c\.npz: is no calibration file .*{message}"):
        read(path)


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", a=np.zeros(3))
    with pytest.raises(UsageError, match="something else"):
        read(tmp_path / "c.npz")
