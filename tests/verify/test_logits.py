"""Outputs called logits that are not [b, s, V]: of the last token, over labels, over more ids than the table has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnx_tailor import pipeline, recipe
from onnx_tailor.calibration.measure import has_logits
from onnx_tailor.errors import UsageError
from onnx_tailor.graph.file.load import load
from onnx_tailor.verify import compare
from onnx_tailor.verify.facts import table_rows
from onnx_tailor.verify.session import LanguageModel
from onnx_tailor.verify.tokens import Tokens, random_tokens

if TYPE_CHECKING:
    from pathlib import Path

V, K = 60, 64
LAST = "start = Constant<value_ints = [-1]>() stop = Constant<value_ints = [9223372036854775807]>()"
LAST += " axis = Constant<value_ints = [1]>() last = Slice(h, start, stop, axis)"
FORMS = {
    "all tokens": ("logits = MatMul(h, W)", "[b, s, 60]", V),
    "the last token": (f"{LAST} logits = MatMul(last, W)", "[b, t, 60]", V),
    "the last token of two dimensions": (f"{LAST} row = Squeeze(last, axis) logits = MatMul(row, W)", "[b, 60]", V),
    "labels of tokens": ("logits = MatMul(h, W)", "[b, s, 9]", 9),
    "labels of texts": ("m = ReduceMax<axes = [1], keepdims = 0>(h) logits = MatMul(m, W)", "[b, 9]", 9),
    "several heads": (
        f"{LAST} one = MatMul(h, W) two = Unsqueeze(one, axis) logits = Concat<axis = 1>(two, two)",
        "[b, 2, s, 60]",
        V,
    ),
    "a padded head": ("logits = MatMul(h, W)", "[b, s, 64]", 64),
    "a padded table": ("logits = MatMul(h, W)", "[b, s, 56]", 56),
}
OVER_THE_VOCABULARY = {"all tokens", "the last token", "a padded head", "a padded table"}


def build(path: Path, form: str) -> Path:
    body, shape, columns = FORMS[form]
    text = f"""<ir_version: 8, opset_import: ["" : 17]> model (int64[b, s] input_ids) => (float{shape} logits)
    <float[{V}, {K}] E, float[{K}, {columns}] W> {{ h = Gather(E, input_ids) {body} }}"""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    values = {"E": random.standard_normal((V, K), np.float32), "W": random.standard_normal((K, columns), np.float32)}
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_what_is_measured(tmp_path: Path, form: str) -> None:
    source = build(tmp_path / "model.onnx", form)
    model = LanguageModel(source)
    over = form in OVER_THE_VOCABULARY
    assert (model.logits is not None, has_logits(load(source))) == (over, over)
    assert model.vocabulary_size == min(V, 56 if form == "a padded table" else V)
    pipeline.run(recipe.load("k-quant-8bit"), source, tmp_path / "out")
    found = compare(source, tmp_path / "out" / "model.onnx")
    assert 0 < found.outputs[0].max_rel < 0.02
    assert (found.kl_mean is not None and 0 < found.kl_mean < 0.01) == over
    assert (found.perplexity_reference is not None) == (over and form != "the last token")
    assert [each.position for each in found.worst if form == "the last token"] in ([], [63] * len(found.worst))


@pytest.mark.parametrize("form", FORMS)
def test_bits_are_chosen_by_it(tmp_path: Path, form: str) -> None:
    source = build(tmp_path / "model.onnx", form)
    chosen = recipe.load("best", settings=["quantize.budget=24 bpw", "quantize.embeddings=true"])
    report = pipeline.run(chosen, source, tmp_path / "out")
    assert 4 < report.after.bits_per_weight <= 24


def test_the_table_in_a_branch(tmp_path: Path) -> None:
    """As a merged decoder has it."""
    branches = [
        f"{name} = g{name} () => (float[b, s, {K}] h{name}) {{ h{name} = Gather(E, input_ids) }}"
        for name in ("then_branch", "else_branch")
    ]
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    model (int64[b, s] input_ids, bool first) => (float[b, s, {K}] y)
    <float[{V}, {K}] E> {{ y = If<{", ".join(branches)}>(first) }}"""
    model = onnx.parser.parse_model(text)
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(np.ones((V, K), np.float32), "E"))
    onnx.save(model, tmp_path / "m.onnx")
    assert table_rows(tmp_path / "m.onnx") == V


def test_ids_are_those_of_the_table(tmp_path: Path) -> None:
    """Labels are few, and no limit to the ids."""
    source = build(tmp_path / "model.onnx", "labels of tokens")
    tokens = random_tokens(V, windows=1)
    assert tokens.windows.max() > 9
    assert compare(source, source, tokens).outputs[0].max_abs == 0
    beyond = Tokens(np.full((1, 4), V), "a file")
    with pytest.raises(UsageError, match=f"The token {V} of a file is beyond the vocabulary"):
        compare(source, source, beyond)
