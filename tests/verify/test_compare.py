from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onnx_tailor.errors import ModelError, UsageError
from onnx_tailor.verify import LanguageModel, Tokens, compare, random_tokens

if TYPE_CHECKING:
    from types import ModuleType


def _load(name: str) -> ModuleType:
    # pytest's importlib mode gives a test's neighbours no name to import them by.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("models.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


models = _load("verify_models")


def test_a_model_is_itself(tmp_path: Path) -> None:
    path = models.with_past(tmp_path / "m.onnx", *models.weights())
    found = compare(path, path)
    assert (found.kl_mean, found.top1_agreement) == (0.0, 1.0)
    assert [each.name for each in found.outputs] == ["logits", "present.0.key"]
    assert all(each.max_abs == each.max_rel == 0.0 and each.where == () for each in found.outputs)
    assert found.random
    assert "seed 0" in found.source
    assert found.decode_difference is not None
    assert found.decode_difference < 1e-5


def test_figures_equal_an_independent_computation(tmp_path: Path) -> None:
    table, head = models.weights(0, 0.7)
    other = head + np.random.default_rng(5).standard_normal(head.shape).astype(np.float32) * 0.2
    reference = models.bigram(tmp_path / "a.onnx", table, head)
    candidate = models.bigram(tmp_path / "b.onnx", table, other)
    tokens = random_tokens(models.V, windows=3, length=11, seed=4)
    found = compare(reference, candidate, tokens)

    nll = {"p": 0.0, "q": 0.0}
    kl, same, gaps = 0.0, 0, []
    for window in tokens.windows:
        for at, token in enumerate(window):
            a = table[token].astype(np.float64) @ head.astype(np.float64)
            b = table[token].astype(np.float64) @ other.astype(np.float64)
            p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
            kl += float(np.sum(p * np.log(p / q)))
            same += int(a.argmax() == b.argmax())
            gaps.append(np.abs(a - b).max())
            if at + 1 < len(window):
                nll["p"] -= float(np.log(p[window[at + 1]]))
                nll["q"] -= float(np.log(q[window[at + 1]]))
    assert found.tokens == 33
    assert found.kl_mean == pytest.approx(kl / 33, rel=1e-5)
    assert found.top1_agreement == same / 33
    assert found.perplexity_reference == pytest.approx(np.exp(nll["p"] / 30), rel=1e-5)
    assert found.perplexity_candidate == pytest.approx(np.exp(nll["q"] / 30), rel=1e-5)
    (logits,) = found.outputs
    assert logits.max_abs == pytest.approx(max(gaps), rel=1e-5)
    window, batch, position, _ = logits.where
    assert (batch, window * 11 + position) == (0, int(np.argmax(gaps)))


def test_types_may_differ(tmp_path: Path) -> None:
    table, head = models.weights()
    reference = models.bigram(tmp_path / "a.onnx", table, head)
    half = models.bigram(tmp_path / "b.onnx", table.astype(np.float16), head.astype(np.float16))
    found = compare(reference, half)
    assert found.kl_mean is not None
    assert 0.0 < found.kl_mean < 1e-4
    assert 0.0 < found.outputs[0].max_rel < 5e-3


def test_a_wrong_cache_shows_in_decoding_alone(tmp_path: Path) -> None:
    reference = models.with_past(tmp_path / "a.onnx", *models.weights())
    candidate = models.with_past(tmp_path / "b.onnx", *models.weights(), bug=True)
    found = compare(reference, candidate)
    assert found.kl_mean == 0.0
    assert found.decode_difference is not None
    assert found.decode_difference_reference is not None
    assert found.decode_difference_reference < 1e-5
    assert found.decode_difference > 1e-2


def test_an_encoder_has_differences_alone(tmp_path: Path) -> None:
    table, _ = models.weights()
    reference = models.encoder(tmp_path / "a.onnx", table)
    table[:, 3] += 0.5
    found = compare(reference, models.encoder(tmp_path / "b.onnx", table))
    assert found.outputs[0].max_abs == pytest.approx(0.5, rel=1e-5)
    assert found.outputs[0].where[3] == 3
    assert found.perplexity_reference is found.perplexity_candidate is found.kl_mean is None
    assert found.top1_agreement is found.decode_difference is None


@pytest.mark.parametrize("bad", ["reference", "candidate"])
def test_nan_logits_are_refused_by_role(tmp_path: Path, bad: str) -> None:
    table, head = models.weights()
    good = models.bigram(tmp_path / "good.onnx", table, head)
    table[5] = np.nan
    broken = models.bigram(tmp_path / "broken.onnx", table, head)
    tokens = Tokens(np.array([[1, 2, 3], [1, 5, 2]], np.int64), "here")
    pair = (broken, good) if bad == "reference" else (good, broken)
    with pytest.raises(ModelError, match=rf"The {bad} .* NaN logits, first in window 1 at position 1"):
        compare(*pair, tokens)


def test_nan_elsewhere_is_an_infinite_difference_and_json_has_it(tmp_path: Path) -> None:
    table, _ = models.weights()
    reference = models.encoder(tmp_path / "a.onnx", table)
    table[:] = np.nan
    found = compare(reference, models.encoder(tmp_path / "b.onnx", table))
    assert found.outputs[0].max_abs == float("inf")
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["outputs"][0]["max_abs"] == "inf"


def test_outputs_of_one_side_are_listed(tmp_path: Path) -> None:
    reference = models.bigram(tmp_path / "a.onnx", *models.weights())
    candidate = models.with_past(tmp_path / "b.onnx", *models.weights())
    found = compare(reference, candidate)
    assert (found.only_reference, found.only_candidate) == ((), ("present.0.key",))
    assert [each.name for each in found.outputs] == ["logits"]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    table, head = models.weights()
    reference = models.bigram(tmp_path / "a.onnx", table, head)
    short = models.bigram(tmp_path / "short.onnx", table, head[:, :-1])
    with pytest.raises(ModelError, match=r"logits has shape .*37\].* in the reference and .*36\]"):
        compare(reference, short)
    with pytest.raises(ModelError, match=r"no name in common"):
        compare(reference, models.bigram(tmp_path / "n.onnx", table, head, logits="scores"))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match=r"^The candidate .*text\.onnx does not load in ONNX Runtime"):
        compare(reference, tmp_path / "text.onnx")
    with pytest.raises(ModelError, match=r"^The reference .*gone\.onnx is not a file"):
        compare(tmp_path / "gone.onnx", reference)
    with pytest.raises(UsageError, match=r"token 37 .* has 37"):
        compare(reference, reference, Tokens(np.array([[1, 37]], np.int64), "here"))
    with pytest.raises(UsageError, match=r"no NoSuchProvider here"):
        compare(reference, reference, provider="NoSuchProvider")


def test_an_unknown_input_is_named(tmp_path: Path) -> None:
    path = models.bigram(tmp_path / "a.onnx", *models.weights(), extra_input="pixel_values")
    with pytest.raises(ModelError, match=r"The input pixel_values \[b, 3\] cannot be filled"):
        LanguageModel(path).prefill(np.zeros((1, 2), np.int64))


def test_decoding_equals_prefill(tmp_path: Path) -> None:
    model = LanguageModel(models.with_past(tmp_path / "m.onnx", *models.weights()))
    assert (model.has_past, model.vocabulary_size, model.logits) == (True, models.V, "logits")
    ids = random_tokens(models.V, windows=2, length=5).windows
    first = model.prefill(ids[:, :4])
    cache = model.cache(first, ids[:, :4])
    last, after = model.decode(ids[:, 4:], cache)
    assert (cache.length, after.length) == (4, 5)
    np.testing.assert_allclose(last["logits"][:, 0], model.prefill(ids)["logits"][:, 4], rtol=1e-5, atol=1e-5)
