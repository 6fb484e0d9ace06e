"""`verify --trace` and `--blame` on the bundled model: what was spoiled is what they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from onnx_tailor import pipeline, recipe
from onnx_tailor.cli import app
from onnx_tailor.verify import Blame, Tokens, blame, compare, from_text, trace

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
MODEL = EXAMPLE / "model.onnx"
LAYER, ROW = 2, 17
UP = "val_592"
"""The weight of up_proj in layer 2, stored [K, N]: the rows of the projection are its columns."""


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return from_text(None, EXAMPLE / "tokenizer.json", 48, limit=1)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "out"
    pipeline.run(recipe.load("k-quant"), MODEL, out)
    return out / "model.onnx"


@pytest.fixture(scope="module")
def blamed(quantized: Path, tokens: Tokens) -> Blame:
    return blame(MODEL, quantized, tokens)


def edited(source: Path, folder: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """Write a copy of a model with one weight changed."""
    model = onnx.load(source)
    (weight,) = [each for each in model.graph.initializer if each.name == name]
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight).copy()), name))
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def spoil_column(weight: Any) -> Any:
    weight[:, ROW] *= 1.5
    return weight


def spoil_row(scales: Any) -> Any:
    scales[ROW] *= 1.5
    return scales


def test_a_spoiled_row_of_a_float_model_is_found_by_both(tmp_path: Path, tokens: Tokens) -> None:
    spoiled = edited(MODEL, tmp_path / "spoiled", UP, spoil_column)
    seen = trace(MODEL, spoiled, tokens)
    assert seen.first is not None
    assert (seen.first.layer, seen.first.role, seen.first.channel) == (LAYER, "up", ROW)
    assert seen.first.channel_error == pytest.approx(0.5, rel=1e-2)
    assert seen.first.median_error == 0.0
    assert seen.first == seen.step == seen.outlier
    before = [point for point in seen.points if (point.layer or 0) < LAYER and point.role != "lm_head"]
    assert len(before) == 2 * 9 + 1
    assert all(point.relative_error == 0.0 for point in before)

    found = blame(MODEL, spoiled, tokens)
    (share,) = found.shares
    assert (share.layer, share.role, share.weight, share.odd_row) == (LAYER, "up", UP, ROW)
    assert share.odd_row_error == pytest.approx(0.5, rel=1e-2)
    assert share.kl == pytest.approx(found.kl, rel=1e-2)
    assert (share.mend, found.skipped) == (None, ())


def test_a_spoiled_row_among_quantized_weights_is_found_by_both(
    tmp_path: Path, quantized: Path, tokens: Tokens
) -> None:
    spoiled = edited(quantized, tmp_path / "spoiled", f"{UP}_scales", spoil_row)
    found = blame(MODEL, spoiled, tokens)
    assert [(share.label, share.odd_row) for share in found.shares if share.odd_row is not None] == [
        (f"layer {LAYER} up", ROW)
    ]
    # Against the sound quantized model it is the only difference, and fed as codes, scales and zero points.
    seen = trace(quantized, spoiled, tokens)
    assert seen.first is not None
    assert seen.first == seen.step == seen.outlier
    assert (seen.first.layer, seen.first.role, seen.first.channel) == (LAYER, "up", ROW)
    (share,) = blame(quantized, spoiled, tokens).shares
    assert (share.layer, share.role, share.odd_row) == (LAYER, "up", ROW)


def test_rounding_alone_makes_no_channel_stand_out(quantized: Path, tokens: Tokens) -> None:
    assert trace(MODEL, quantized, tokens).outlier is None


def test_nothing_differs_in_a_model_itself(quantized: Path, tokens: Tokens) -> None:
    for path in (MODEL, quantized):
        seen = trace(path, path, tokens)
        assert len(seen.points) == 4 * 9 + 2
        assert all(point.relative_error == point.channel_error == 0.0 for point in seen.points)
        assert (seen.first, seen.step, seen.outlier) == (None, None, None)
        found = blame(path, path, tokens)
        assert (found.shares, found.kl, found.skipped) == ((), 0.0, ())


def test_a_share_is_what_the_weight_does_alone_and_all_add_up(tmp_path: Path, quantized: Path, tokens: Tokens) -> None:
    found = blame(MODEL, quantized, tokens)
    assert len(found.shares) == 4 * 7 + 1
    assert sum(share.kl for share in found.shares) == pytest.approx(found.kl, rel=0.1)
    assert found.kl == pytest.approx(compare(MODEL, quantized, tokens).kl_mean)
    (share,) = [each for each in found.shares if each.weight == UP]
    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(quantized).graph.initializer}
    codes = stored[f"{UP}_q4"]
    low_first = np.stack([codes & 15, codes >> 4], axis=-1).reshape(512, 6, 32).astype(np.float32)
    points = stored[f"{UP}_zero_points"]
    zero = np.stack([points & 15, points >> 4], axis=-1).reshape(512, 6).astype(np.float32)
    values = (low_first - zero[..., None]) * stored[f"{UP}_scales"].astype(np.float32)[..., None]
    alone = edited(MODEL, tmp_path / "alone", UP, lambda old: values.reshape(512, 192).T.astype(old.dtype))
    assert share.kl == pytest.approx(compare(MODEL, alone, tokens).kl_mean, rel=0.02)


def test_the_line_that_mends_a_weight_mends_it(tmp_path: Path, tokens: Tokens, blamed: Blame) -> None:
    worst = next(share for share in blamed.shares if share.layer is not None)
    assert worst.mend is not None
    mended = tmp_path / "mended.yaml"
    text = f"recipe: 1\npasses:\n  - tie-embeddings\n  - quantize:\n      nodes:\n        {worst.mend}\n"
    mended.write_text(text, encoding="utf-8")
    report = pipeline.run(recipe.load(str(mended)), MODEL, tmp_path / "out")
    changed = [change.details for done in report.passes for change in done.changes if change.details.get("bits") == 8]
    assert [(each["weight"], each["layer"], each["role"]) for each in changed] == [
        (worst.weight, worst.layer, worst.role)
    ]
    again = blame(MODEL, tmp_path / "out" / "model.onnx", tokens)
    (share,) = [each for each in again.shares if each.weight == worst.weight]
    assert share.kl < worst.kl / 20
    assert share.bits == 8


def test_graphs_without_known_roles_are_traced_by_name(tmp_path: Path, tokens: Tokens) -> None:
    bare = []
    for number, factor in enumerate((1.0, 1.5)):
        model = onnx.load(MODEL)
        for node in model.graph.node:
            del node.metadata_props[:]
        for each in model.graph.initializer:
            if each.name == UP:
                each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each) * np.float16(factor), UP))
        path = tmp_path / f"{number}.onnx"
        onnx.save(model, path)
        bare.append(path)
    seen = trace(bare[0], bare[1], tokens)
    assert seen.first is not None
    if seen.matched_by == "name":
        assert seen.first.label == "linear_19"
    else:  # the structure told the roles
        assert (seen.first.layer, seen.first.role) == (LAYER, "up")
    (share,) = blame(bare[0], bare[1], tokens).shares
    assert share.weight == UP


def test_the_command_line_prints_what_was_found(tmp_path: Path) -> None:
    spoiled = edited(MODEL, tmp_path / "spoiled", UP, spoil_column)
    arguments = ["verify", str(EXAMPLE), str(spoiled), "--text", "bundled", "--window", "32", "--windows", "1"]
    run = CliRunner(env={"COLUMNS": "80"})
    shown = run.invoke(app, [*arguments, "--trace", "--blame"]).stdout
    assert f"trace: first different at layer {LAYER} up" in shown
    assert f"blame: row {ROW} of layer {LAYER} up ({UP})" in shown
    found = json.loads(run.invoke(app, [*arguments, "--trace", "--blame", "--json"]).stdout)
    assert found["trace"]["first"]["label"] == found["blame"]["shares"][0]["label"] == f"layer {LAYER} up"
