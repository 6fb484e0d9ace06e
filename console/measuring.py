"""What `verify` and `run --verify` share: the tokens, the models and the limits that their options name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_tailor import verify
from onnx_tailor.errors import ModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_tailor.progress import Progress
    from onnx_tailor.verify import Comparison, Tokens

__all__ = ["Check", "TokenOptions", "model_file", "read_tokens"]


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """The options that choose the tokens, as they came from the command line."""

    tokens: Path | None
    text: Path | None
    tokenizer: Path | None
    window: int
    windows: int | None

    @property
    def given(self) -> bool:
        """Whether one of them was given at all."""
        return any((self.tokens, self.text, self.tokenizer, self.windows))


class Check:
    """What `run --verify` asks of its result before the output folder gets its name."""

    def __init__(self, options: TokenOptions, model: Path, limits: Mapping[str, float], progress: Progress) -> None:
        """Read the tokens, so that a mistake in them comes before the work."""
        self._tokens = read_tokens(options, model)
        self._limits = limits
        self._progress = progress
        self.found: list[Comparison] = []
        """What was measured, for each ONNX file."""

    def __call__(self, files: Sequence[tuple[Path, Path]]) -> list[dict[str, Any]]:
        """Compare each pair of files, reference and candidate, and return the JSON forms.

        Raises:
            ModelError: a limit is exceeded, or a model cannot be run.

        """
        beyond: list[str] = []
        for reference, candidate in files:
            found = verify.compare(reference, candidate, self._tokens, progress=self._progress)
            self.found.append(replace(found, candidate=candidate.name))  # its folder has yet to get its name
            several = f"{candidate.name}: " if len(files) > 1 else ""
            beyond += [f"{several}{line}" for line in verify.exceeded(found, self._limits)]
        self._progress.finish()
        if beyond:
            raise ModelError("\n".join([*beyond, "the result is beyond the limits of --limit; nothing was written"]))
        return [found.to_json() for found in self.found]


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
