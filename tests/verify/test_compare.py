from __future__ import annotations

import json
from pathlib import Path

import bigram_models as models
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from onnx_tailor.errors import ModelError, UsageError
from onnx_tailor.verify import LanguageModel, Tokens, compare, compare_each, random_tokens
from onnx_tailor.verify.metrics import most_likely


def test_a_model_is_itself(tmp_path: Path) -> None:
    path = models.with_past(tmp_path / "m.onnx", *models.weights())
    found = compare(path, path)
    assert (found.kl_mean, found.kl_p99, found.kl_max) == (0.0, 0.0, 0.0)
    assert (found.top1_agreement, found.top5_agreement, found.worst) == (1.0, 1.0, ())
    assert found.perplexity_candidate == found.perplexity_reference
    assert found.decode_difference == found.decode_difference_reference
    assert found.greedy is not None
    assert found.greedy.lengths == (found.greedy.steps,) * 4
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
    kls, same, shared, gaps = [], 0, 0, []
    for window in tokens.windows:
        for at, token in enumerate(window):
            a = table[token].astype(np.float64) @ head.astype(np.float64)
            b = table[token].astype(np.float64) @ other.astype(np.float64)
            p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
            kls.append(float(np.sum(p * np.log(p / q))))
            shared += len({*np.argsort(a)[-5:]} & {*np.argsort(b)[-5:]})
            same += int(a.argmax() == b.argmax())
            gaps.append(np.abs(a - b).max())
            if at + 1 < len(window):
                nll["p"] -= float(np.log(p[window[at + 1]]))
                nll["q"] -= float(np.log(q[window[at + 1]]))
    assert found.tokens == 33
    assert found.kl_mean == pytest.approx(sum(kls) / 33, rel=1e-5)
    ordered = sorted(kls)  # of 33, the 99th percentile lies 0.68 of the way from the 32nd to the 33rd
    assert found.kl_p99 == pytest.approx(ordered[31] + 0.68 * (ordered[32] - ordered[31]), rel=1e-5)
    assert found.kl_max == pytest.approx(max(kls), rel=1e-5)
    assert (found.top1_agreement, found.top5_agreement) == (same / 33, shared / 165)
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
    with pytest.raises(ModelError, match=r"text\.onnx: not an ONNX model, or cut off"):
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


def test_the_worst_tokens_come_with_their_text(tmp_path: Path) -> None:
    table, head = models.weights()
    reference = models.bigram(tmp_path / "a.onnx", table, head)
    table[7] *= -1.0  # the model sees the token 7 as another
    candidate = models.bigram(tmp_path / "b.onnx", table, head)
    windows = np.array([[1, 2, 3], [4, 7, 5], [6, 8, 9]], np.int64)
    found = compare(reference, candidate, Tokens(windows, "here", spell=lambda ids: "".join(f"<{i}>" for i in ids)))
    (worst,) = found.worst
    assert (worst.window, worst.position, worst.kl) == (1, 1, found.kl_max)
    assert (worst.context, worst.following) == ("<4><7>", "<5>")
    logits = -table[7] @ head
    assert (worst.reference, worst.candidate) == (f"<{logits.argmax()}>", f"<{logits.argmin()}>")
    assert compare(reference, candidate, Tokens(windows, "here")).worst[0].context == "[4, 7]"


def test_greedy_texts_part_where_decoding_does(tmp_path: Path) -> None:
    table, head = models.weights()
    reference = models.with_past(tmp_path / "a.onnx", table, head)
    tokens = random_tokens(models.V, windows=3, length=8)
    model = LanguageModel(reference)
    written = []
    for window in tokens.windows:
        ids = list(window[:4])
        for _ in range(32):  # without a cache: the whole text anew for each token
            logits = model.prefill(np.array([ids], np.int64))["logits"][0, -1]
            ids.append(int(logits.argmax()))
        written.append(ids[4:])
    wrong = head.copy()
    target = written[0][2]
    wrong[:, target] = -head[:, target]
    candidate = models.with_past(tmp_path / "b.onnx", table, wrong)
    found = compare(reference, candidate, tokens).greedy
    assert found is not None
    expected = []
    other = LanguageModel(candidate)
    for window, text in zip(tokens.windows, written, strict=True):
        ids, count = list(window[:4]), 0
        for token in text:
            if int(other.prefill(np.array([ids], np.int64))["logits"][0, -1].argmax()) != token:
                break
            ids.append(token)
            count += 1
        expected.append(count)
    assert found.lengths == tuple(expected)
    assert min(expected) < 32
    assert compare(reference, reference, tokens).greedy.lengths == (32, 32, 32)  # type: ignore[union-attr]


def test_several_candidates_share_the_reference_and_the_progress(tmp_path: Path) -> None:
    table, head = models.weights()
    files = []
    for number, scale in enumerate((1.0, 1.1, 1.3)):
        files.append(models.bigram(tmp_path / f"{number}.onnx", table, (head * scale).astype(np.float32)))
    phases: list[list[int]] = []

    class Watch:
        def start(self, what: str, total: int, unit: str = "bytes") -> None:
            assert unit == "tokens"
            phases.append([total])

        def advance(self, count: int) -> None:
            phases[-1].append(count)

        def finish(self) -> None:
            pass

    found = list(compare_each(files[0], files, progress=Watch()))
    assert [each.candidate for each in found] == [str(file) for file in files]
    assert found[0].kl_mean == 0.0
    assert 0.0 < found[1].kl_mean < found[2].kl_mean  # type: ignore[operator]
    assert [sum(done) for _, *done in phases] == [total for total, *_ in phases] == [256] * 3


@given(hypothesis_numpy.arrays(np.float32, st.integers(1, 3000), elements=st.sampled_from([0.0, 1.0, 2.0, -np.inf])))
def test_the_most_likely_of_equal_logits_is_the_lower_id(row: npt.NDArray[np.float32]) -> None:
    expected = sorted(range(len(row)), key=lambda i: (-row[i], i))[:5]
    assert most_likely(row).tolist() == expected
