"""Every way a command can fail, as one sentence on standard error and an exit status."""

from __future__ import annotations

import json
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from onnx_tailor.errors import TailorError, Terminated

__all__ = ["Commands"]

USAGE = 2
"""The exit status of a wrong command line."""
INTERRUPTED = 130
"""The exit status shells give a program ended by Ctrl-C."""
TERMINATED = 143
"""The exit status shells give a program ended by SIGTERM."""


class Commands(TyperGroup):
    """The command group: turns exceptions into a message, a status and, with --json, the one JSON object."""

    # The context's class moved from click into typer, so that no annotation suits all releases.

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note whether the command line asks for JSON, before anything can be wrong with it."""
        ctx.obj = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            status = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
            raise _fail(str(error) or "interrupted; nothing was written", status, as_json=ctx.obj) from error
        except TailorError as error:
            raise _fail(str(error), error.exit_status, as_json=ctx.obj) from error
        except OSError as error:
            what = error.strerror or str(error)
            where = f"{error.filename}: " if error.filename else ""
            raise _fail(f"{where}{what}; nothing was written", 1, as_json=ctx.obj) from error
        except Exception as error:
            said = getattr(error, "format_message", None)
            if said is not None:  # wrong usage, which typer itself prints
                if ctx.obj:
                    _print_json(said(), USAGE)
                raise
            typer.echo(traceback.format_exc(), err=True)
            message = f"internal error, please report it with the lines above: {type(error).__name__}: {error}"
            raise _fail(message, 1, as_json=ctx.obj) from error


def _fail(message: str, status: int, *, as_json: bool) -> typer.Exit:
    """Print the message and return the exception that ends the program."""
    for line in message.splitlines():
        typer.echo(f"error: {line}", err=True)
    if as_json:
        _print_json(message, status)
    return typer.Exit(status)


def _print_json(message: str, status: int) -> None:
    """Print the one object that a failed command puts on standard output."""
    typer.echo(json.dumps({"error": {"message": message, "exit_status": status}}))
