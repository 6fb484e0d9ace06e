"""The tokens both models are run on: from an array, from a text, or random with a fixed seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from onnx_tailor.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BUNDLED", "Tokens", "from_npy", "from_text", "random_tokens"]

Ids = npt.NDArray[np.int64]

BUNDLED = "bundled"
"""Names, in the place of a text's path, the passage that comes with the package: the article "Appropriate Uses For
SQLite" of the SQLite project, in the public domain, a paragraph a line (about 2,900 tokens)."""


@dataclass(frozen=True)
class Tokens:
    """Windows of tokens, each run on its own from an empty cache."""

    windows: Ids
    """Token ids, int64 [n, length], length >= 2 so that each window predicts at least one token."""
    source: str
    """Where the tokens come from, for the report."""
    random: bool = False
    """Whether the ids are random: the perplexity over them then says nothing about a model's quality."""
    spell: Callable[[Sequence[int]], str] | None = field(default=None, compare=False)
    """Turns ids into their text, where a tokenizer is known."""

    def __post_init__(self) -> None:
        shape = self.windows.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
            raise UsageError(
                f"The tokens of {self.source} have shape {list(shape)}; give at least one window of two tokens."
            )
        if self.windows.dtype != np.int64 or int(self.windows.min()) < 0:
            raise UsageError(f"The tokens of {self.source} must be int64 ids, none of them negative.")


def from_npy(path: Path, window: int = 256, *, limit: int | None = None, tokenizer_path: Path | None = None) -> Tokens:
    """Read token ids from a .npy file of integers; a tokenizer is needed only to spell them.

    A one-dimensional array is cut into windows of `window` tokens (the rest is dropped, unless there is
    but that rest); the rows of a two-dimensional one are the windows as they stand. At most `limit`
    windows are kept.

    Raises:
        UsageError: the file is missing, is no .npy file, or does not hold integers in one or two dimensions.

    """
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"The tokens {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError) as error:  # numpy's own words speak of loading it unsafely
        raise UsageError(f"{path} is no .npy file of token ids.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim not in {1, 2}:
        raise UsageError(f"{path} must hold one integer array of one or two dimensions.")
    ids = array.astype(np.int64)
    windows = ids if ids.ndim == 2 else _cut(ids, window)
    return Tokens(windows[:limit], path.name, spell=_speller(_tokenizer(tokenizer_path)) if tokenizer_path else None)


def from_text(text_path: Path | None, tokenizer_path: Path, window: int = 256, *, limit: int | None = None) -> Tokens:
    """Encode a UTF-8 text with a tokenizer.json and cut it into windows of `window` tokens.

    `text_path` None is the bundled passage.

    Special tokens that the tokenizer puts in front of a text (as <bos>) stand in front of every window, since
    many models predict nothing sensible without; those it puts behind are left out. At most `limit` windows
    are kept.

    Raises:
        UsageError: a file cannot be read, or the text yields fewer than two tokens.

    """
    text = _passage() if text_path is None else _read(text_path)
    tokenizer = _tokenizer(tokenizer_path)
    probe = tokenizer.encode("a")
    prefix = np.array(probe.ids[: _leading(probe.special_tokens_mask)], dtype=np.int64)
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
    body = _cut(ids, window - len(prefix))
    heads = np.broadcast_to(prefix, (len(body), len(prefix)))
    source = f"{text_path.name if text_path else 'the bundled passage'} by {tokenizer_path.name}"
    return Tokens(np.concatenate([heads, body], axis=1)[:limit], source, spell=_speller(tokenizer))


def random_tokens(vocabulary_size: int, *, windows: int = 4, length: int = 64, seed: int = 0) -> Tokens:
    """Draw ids uniformly from [0, vocabulary_size); the same arguments give the same tokens.

    They show whether two models compute the same; a perplexity over them is meaningless.
    """
    ids = np.random.default_rng(seed).integers(0, vocabulary_size, (windows, length), dtype=np.int64)
    return Tokens(ids, f"random tokens (seed {seed})", random=True)


def _passage() -> str:
    return resources.files("onnx_tailor.verify").joinpath("passage.txt").read_text(encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The text {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The text {path} is not UTF-8: {error}.") from error


def _tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise UsageError(
            f"There is no tokenizer at {path}; give it with --tokenizer FILE, or leave out --text to compare on random "
            "tokens."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise UsageError(f"{path} is no tokenizer.json that can be read: {error}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _speller(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _cut(ids: Ids, window: int) -> Ids:
    """Cut int64 [n] into [n // window, window]; fewer than `window` ids make one shorter window."""
    if window < 1:
        raise UsageError(f"A window must leave room for a token of the text; {window} is too small.")
    if len(ids) < window:
        return ids[None, :]
    count = len(ids) // window
    return ids[: count * window].reshape(count, window)


def _leading(mask: list[int]) -> int:
    """Count the ones at the start of `mask`."""
    return next((at for at, special in enumerate(mask) if not special), len(mask))
