"""Models whose states are buffers of a sliding window, as the GenAI builder of today writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from onnx_tailor.verify.session import LanguageModel

MODEL = Path(__file__).parents[1] / "fixtures" / "exports" / "genai-gpt-oss-fp32" / "model.onnx"
WINDOW = 64
VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
needs_windows = pytest.mark.skipif(VERSION < (1, 30), reason="GroupQueryAttention has no sliding_window_cache yet")


@needs_windows
@pytest.mark.parametrize("length", [9, WINDOW + 9])
def test_a_token_decoded_is_the_token_prefilled(length: int) -> None:
    model = LanguageModel(MODEL)
    assert model.logits is not None
    ids = np.random.default_rng(3).integers(3, 380, (1, length))
    whole = model.prefill(ids)
    before = model.prefill(ids[:, :-1])
    last, cache = model.decode(ids[:, -1:], model.cache(before, ids[:, :-1]))
    assert cache.length == length
    np.testing.assert_allclose(last[model.logits][0, -1], whole[model.logits][0, -1], rtol=0, atol=1e-5)


@needs_windows
def test_what_no_token_filled_is_zero() -> None:
    state = LanguageModel(MODEL).prefill(np.array([[5, 6, 7]]))["present.0.key"]
    assert state.shape[2] == WINDOW
    assert state[:, :, :3].any(axis=(1, 3)).all()
    assert not state[:, :, 3:].any()
