"""What `verify` and `run --verify` share: the tokens, the models and the limits that their options name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_tailor import verify
from onnx_tailor.errors import UsageError

if TYPE_CHECKING:
    from onnx_tailor.verify import Tokens

__all__ = ["TokenOptions", "model_file", "read_tokens"]


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """The options that choose the tokens, as they came from the command line."""

    tokens: Path | None
    text: Path | None
    tokenizer: Path | None
    window: int
    windows: int | None


def model_file(path: Path) -> Path:
    """Return the one ONNX file of a folder, such as `run` writes; a file as it is.

    Raises:
        UsageError: the folder holds none, or several.

    """
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.onnx"))
    if len(files) != 1:
        raise UsageError(f"{path} holds {len(files)} ONNX files; give the one to compare")
    return files[0]


def read_tokens(options: TokenOptions, reference: Path) -> Tokens | None:
    """Read the tokens that the options name; None for random ones.

    Raises:
        UsageError: options exclude each other, or a file cannot be read.

    """
    if options.tokens is not None and options.text is not None:
        raise UsageError("--tokens and --text exclude each other; give one of them")
    if options.tokens is None and options.text is None:
        if options.tokenizer is not None:
            raise UsageError("--tokenizer needs --text or --tokens, the tokens to read with it")
        return None
    beside = (reference if reference.is_dir() else reference.parent) / "tokenizer.json"
    tokenizer = options.tokenizer or beside
    if options.tokens is not None:
        spelling = options.tokenizer or (beside if beside.is_file() else None)
        return verify.from_npy(options.tokens, options.window, limit=options.windows, tokenizer_path=spelling)
    text = None if str(options.text) == verify.BUNDLED else options.text
    return verify.from_text(text, tokenizer, options.window, limit=options.windows)
