"""What can go wrong, each with the exit status that the command line gives it.

A message is one sentence for somebody who has never seen the graph: what, where, what to do.
"""

from __future__ import annotations


def innermost(error: BaseException) -> str:
    """Return in a line what was at the bottom of a library's error; what it was wrapped in repeats whole messages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class TailorError(Exception):
    """Base of every error that is shown to the user as one sentence, without a traceback."""

    exit_status: int = 1


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM. Exit status 143, as shells give it."""


class ModelError(TailorError):
    """The model cannot be read, or cannot be rewritten as asked. Exit status 1."""


class InputsError(ModelError):
    """An input of the model cannot be filled from tokens, as the pixels that an encoder of images takes."""


class OutputError(TailorError):
    """The output cannot be written, or is not what its report says. Exit status 1."""


class UsageError(TailorError):
    """The command line or the recipe is wrong. Exit status 2."""

    exit_status = 2


class ResumeError(UsageError):
    """`--resume` finds what another run left. Exit status 2."""


class OptionError(UsageError):
    """A pass's option is wrong: a value out of range, or a pattern that matches nothing in this model.

    Passes raise it without knowing about files; the pipeline turns it into a `UsageError` that starts with the
    recipe's file:line:column of `key`.
    """

    def __init__(self, message: str, *, key: tuple[str | int, ...] = ()) -> None:
        """`key` is the path of the offending value inside the pass's options, as in ("nodes", "*/q_proj/*")."""
        super().__init__(message)
        self.key = key
