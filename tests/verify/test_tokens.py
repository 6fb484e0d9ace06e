from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from onnx_tailor.errors import UsageError
from onnx_tailor.verify import from_npy, from_text, random_tokens

if TYPE_CHECKING:
    from pathlib import Path


def _tokenizer(path: Path) -> Path:
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "<unk>": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.save(str(path))
    return path


def test_text_windows_begin_with_the_first_special_token(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b b a a b a", encoding="utf-8")
    tokens = from_text(text, _tokenizer(tmp_path / "tokenizer.json"), window=4)
    assert tokens.windows.tolist() == [[0, 2, 3, 3], [0, 2, 2, 3]]
    assert not tokens.random
    assert from_text(text, tmp_path / "tokenizer.json", 4, limit=1).windows.shape == (1, 4)


def test_a_short_text_is_one_window(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b", encoding="utf-8")
    assert from_text(text, _tokenizer(tmp_path / "t.json")).windows.tolist() == [[0, 2, 3]]


def test_npy_is_cut_or_taken_as_it_stands(tmp_path: Path) -> None:
    flat, rows = tmp_path / "flat.npy", tmp_path / "rows.npy"
    np.save(flat, np.arange(10, dtype=np.int32))
    np.save(rows, np.arange(10, dtype=np.uint16).reshape(2, 5))
    assert from_npy(flat, window=4).windows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert from_npy(flat).windows.shape == (1, 10)
    assert from_npy(rows).windows.shape == (2, 5)
    assert from_npy(rows).windows.dtype == np.int64


def test_the_bundled_passage_is_a_text(tmp_path: Path) -> None:
    tokens = from_text(None, _tokenizer(tmp_path / "t.json"), window=100)
    assert tokens.windows.shape[0] > 20
    assert "the bundled passage" in tokens.source
    assert tokens.spell is not None
    assert tokens.spell([2, 3]) == "a b"


def test_the_bundled_passage_is_none_that_calibrate_reads() -> None:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}

    passage = resources.files("onnx_tailor.verify").joinpath("passage.txt").read_text(encoding="utf-8")
    calibration = resources.files("onnx_tailor.calibration").joinpath("text/mixed.txt").read_text(encoding="utf-8")
    assert len(runs(passage)) > 1000
    assert not runs(passage) & runs(calibration)


def test_array_of_ids_is_spelled_where_a_tokenizer_is_given(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([2, 3]))
    assert from_npy(tmp_path / "a.npy").spell is None
    tokens = from_npy(tmp_path / "a.npy", tokenizer_path=_tokenizer(tmp_path / "t.json"))
    assert tokens.spell is not None
    assert tokens.spell([3]) == "b"


def test_random_tokens_repeat() -> None:
    first, second = random_tokens(100), random_tokens(100)
    assert first.random
    assert first.windows.shape == (4, 64)
    assert np.array_equal(first.windows, second.windows)
    assert not np.array_equal(first.windows, random_tokens(100, seed=1).windows)
    assert first.windows.max() < 100


@pytest.mark.parametrize(
    "array", [np.zeros((2, 1), np.int64), np.zeros((2, 2)), np.zeros((1, 2, 2), np.int64), np.array([-1, 2])]
)
def test_arrays_that_are_no_tokens(tmp_path: Path, array: npt.NDArray[Any]) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UsageError, match=r"a\.npy"):
        from_npy(tmp_path / "a.npy")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\xff\xfe\xff")
    text = tmp_path / "text.txt"
    text.write_text("a", encoding="utf-8")
    with pytest.raises(UsageError, match=r"is no \.npy file of token ids"):
        from_npy(tmp_path / "bad")
    with pytest.raises(UsageError, match=r"is not UTF-8"):
        from_text(tmp_path / "bad", text)
    with pytest.raises(UsageError, match=r"no tokenizer at"):
        from_text(text, tmp_path / "gone.json")
    with pytest.raises(UsageError, match=r"no tokenizer\.json that can be read"):
        from_text(text, text)
