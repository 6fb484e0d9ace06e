"""What `verify` and `run --verify` share: the tokens, the models and the limits that their options name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_tailor import verify
from onnx_tailor.errors import ModelError, UsageError
from onnx_tailor.graph.file.places import home, onnx_files
from onnx_tailor.verify.facts import reads_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnx_tailor.progress import Progress
    from onnx_tailor.remote import Place
    from onnx_tailor.report import Report
    from onnx_tailor.verify import Blame, Comparison, Tokens, Trace

    Page = Callable[[Path, Path, "Measured", Report], None]

__all__ = ["Check", "Measured", "TokenOptions", "measure", "model_file", "read_tokens", "run_check"]


WINDOW = 256
"""Tokens of a window of a text."""
RANDOM_WINDOWS, RANDOM_LENGTH = 4, 64
"""Windows of random tokens and the tokens of each."""


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """The options that choose the tokens, as they came from the command line."""

    tokens: Path | None
    text: Path | None
    tokenizer: Path | None
    window: int | None
    """Tokens of a window; without it 256, or 64 of random ones."""
    windows: int | None

    @property
    def given(self) -> bool:
        """Whether one of them was given at all."""
        return any((self.tokens, self.text, self.tokenizer, self.window, self.windows))


class Check:
    """What `run --verify` asks of its result before the output folder gets its name."""

    def __init__(
        self,
        options: TokenOptions,
        model: Path,
        limits: Mapping[str, float],
        progress: Progress,
        page: Page | None = None,
    ) -> None:
        """Read the tokens, so that a mistake in them comes before the work.

        `page` is given each pair of files, what was measured of it and the run's report, to write a page about it.
        """
        self._page = page
        self._tokens = read_tokens(options, model)
        self._limits = limits
        self._progress = progress
        self.found: list[Measured] = []
        """What was measured, for each ONNX file."""

    def __call__(self, files: Sequence[tuple[Path, Path]], report: Report) -> list[dict[str, Any]]:
        """Compare each pair of files, reference and candidate, and return the JSON forms.

        Raises:
            ModelError: a limit is exceeded, or a model cannot be run.

        """
        beyond: list[str] = []
        for reference, candidate in files:
            (found,) = measure(
                reference, [candidate], self._tokens, self._limits, self._progress, trace=self._page is not None
            )
            # The result's folder has yet to get its name, and the report is to be the same wherever it is made.
            named = replace(found.comparison, reference=reference.name, candidate=candidate.name)
            self.found.append(replace(found, comparison=named))
            if self._page is not None:
                self._page(reference, candidate, self.found[-1], report)
            several = f"{candidate.name}: " if len(files) > 1 else ""
            beyond += [f"{several}{line}" for line in found.exceeded]
        self._progress.finish()
        if beyond:
            raise ModelError("\n".join([*beyond, "the result is beyond the limits of --limit; nothing was written"]))
        return [found.to_json() for found in self.found]


def run_check(
    options: TokenOptions,
    source: Place,
    limits: Sequence[str],
    page: Page | None,
    progress: Progress,
    *,
    wanted: bool,
    dry_run: bool,
) -> Check | None:
    """Return the check that `run` was asked for by --verify, with a page about it that `page` writes.

    Raises:
        UsageError: the options do not fit together.
    """
    if wanted and not dry_run:
        if not isinstance(source, Path):
            raise UsageError(f"{source}: --verify runs both models, which must be on this machine; leave it out")
        return Check(options, source, verify.parse_limits(limits), progress, page)
    if wanted or limits or page or options.given:
        what = "a dry run makes no model to verify" if wanted else "the tokens, --limit and --report belong to --verify"
        raise UsageError(f"{what}; leave out the one or the other")
    return None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one candidate."""

    comparison: Comparison
    trace: Trace | None = None
    blame: Blame | None = None
    exceeded: tuple[str, ...] = ()
    """A sentence for each limit that is exceeded."""

    def to_json(self) -> dict[str, Any]:
        """Return the comparison's JSON form with the others beside it, as far as they were asked for."""
        found = {**self.comparison.to_json(), "exceeded": list(self.exceeded)}
        for name, part in (("trace", self.trace), ("blame", self.blame)):
            if part is not None:
                found[name] = verify.jsonable(asdict(part))
        return found


def measure(
    reference: Path,
    candidates: Sequence[Path],
    tokens: Tokens | TokenOptions,
    limits: Mapping[str, float],
    progress: Progress,
    *,
    trace: bool = False,
    blame: bool = False,
) -> list[Measured]:
    """Compare each candidate with the reference; trace and blame it where that is wanted.

    Options in the place of tokens are those of random ones, for which the model's vocabulary has to be known.

    Raises:
        ModelError: a model cannot be run.
        UsageError: a limit is on a figure that the models do not have.

    """
    if isinstance(tokens, TokenOptions):
        reads = reads_tokens(reference)  # else every window would give the same
        tokens = verify.random_tokens(
            verify.LanguageModel(reference, role="reference").vocabulary_size if reads else 2,
            windows=tokens.windows or RANDOM_WINDOWS,
            length=tokens.window or RANDOM_LENGTH,
        )
    found = list(verify.compare_each(reference, candidates, tokens, progress=progress))
    return [
        Measured(
            comparison=each,
            trace=verify.trace(reference, file, tokens, progress=progress) if trace else None,
            blame=verify.blame(reference, file, tokens, progress=progress) if blame else None,
            exceeded=tuple(verify.exceeded(each, limits)),
        )
        for file, each in zip(candidates, found, strict=True)
    ]


def model_file(path: Path, like: Path | None = None) -> Path:
    """Return the one ONNX file of a folder, such as `run` writes, or that which is named as `like` is; a file as it is.

    Raises:
        UsageError: the folder holds none, or several.

    """
    if not path.is_dir():
        return path
    files = onnx_files(path)
    same = [file for file in files if like is not None and file.name == like.name]
    if not files:
        raise UsageError(f"{path} holds no ONNX file")
    if len(files) > 1 and not same:
        raise UsageError(f"{path} holds {', '.join(file.name for file in files)}; give the one that is meant")
    return (same or files)[0]


def read_tokens(options: TokenOptions, reference: Path) -> Tokens | TokenOptions:
    """Read the tokens that the options name; return the options themselves where they ask for random ones.

    Raises:
        UsageError: options exclude each other, or a file cannot be read.

    """
    if options.tokens is not None and options.text is not None:
        raise UsageError("--tokens and --text exclude each other; give one of them")
    if options.tokens is None and options.text is None:
        if options.tokenizer is not None:
            raise UsageError("--tokenizer needs --text or --tokens, the tokens to read with it")
        return options
    beside = home(reference) / "tokenizer.json"
    tokenizer = options.tokenizer or beside
    if options.tokens is not None:
        spelling = options.tokenizer or (beside if beside.is_file() else None)
        return verify.from_npy(options.tokens, options.window or WINDOW, limit=options.windows, tokenizer_path=spelling)
    text = None if str(options.text) == verify.BUNDLED else options.text
    return verify.from_text(text, tokenizer, options.window or WINDOW, limit=options.windows)
