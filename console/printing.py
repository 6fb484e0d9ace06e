"""Print what was done once it is done: a full disk or a closed pipe behind standard output does not undo it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["done_already"]


@contextmanager
def done_already(what: str) -> Iterator[None]:
    """Let printing fail without an error: `what` was done, and the exit status speaks of that."""
    try:
        yield
        sys.stdout.flush()
    except SystemExit:  # how rich ends where a pipe is closed
        return
    except OSError as error:
        # What is left in the buffers must not fail again when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):  # whoever closed the pipe has read enough
            typer.echo(f"the report cannot be printed ({error.strerror or error}); {what}", err=True)
