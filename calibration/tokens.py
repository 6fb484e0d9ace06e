"""Which tokens a calibration runs on: the user's, the bundled text, or at worst random ones."""

from __future__ import annotations

from pathlib import Path

from onnx_tailor.errors import UsageError
from onnx_tailor.graph.file.places import home
from onnx_tailor.verify.facts import positions, reads_tokens
from onnx_tailor.verify.session import LanguageModel
from onnx_tailor.verify.tokens import Tokens, from_npy, from_text, random_tokens

TEXT = Path(__file__).parent / "text" / "mixed.txt"
"""The bundled text."""
BUNDLED = "the bundled text"
_RANDOM_WINDOWS, _WINDOW = 64, 256
"""Windows of random tokens; the tokens of a window, where the model takes as many."""


def choose(
    model: Path, *, text: Path | None = None, tokenizer: Path | None = None, tokens: Path | None = None
) -> Tokens:
    """Return the tokens of a file, or of a text; without a tokenizer here or beside the model, random tokens.

    Raises:
        UsageError: a file cannot be read, or they exclude each other.
    """
    length = _length(model)
    if tokens is not None:
        if text is not None or tokenizer is not None:
            raise UsageError("--tokens excludes --text and --tokenizer; the ids are final")
        return from_npy(tokens, length)
    beside = home(model) / "tokenizer.json"
    if text is None and tokenizer is None:
        if not reads_tokens(model):
            return random_tokens(2, windows=1, length=length)  # every window would give the same
        if not beside.is_file():
            size = LanguageModel(model).vocabulary_size
            return random_tokens(size, windows=_RANDOM_WINDOWS, length=length)
    found = from_text(text or TEXT, tokenizer or beside, length)
    return found if text is not None else Tokens(found.windows, BUNDLED)


def unseen(model: Path) -> Tokens:
    """Return tokens to measure by that `choose` did not give: the passage of `verify`, or other random ones.

    Raises:
        UsageError: the tokenizer cannot be read.
    """
    beside, length = home(model) / "tokenizer.json", _length(model)
    if not reads_tokens(model):
        return random_tokens(2, windows=1, length=length, seed=1)
    if beside.is_file():
        return from_text(None, beside, length)
    return random_tokens(LanguageModel(model).vocabulary_size, windows=4, length=length, seed=1)


def _length(model: Path) -> int:
    """Return the tokens of a window."""
    return min(_WINDOW, positions(model) or _WINDOW)
