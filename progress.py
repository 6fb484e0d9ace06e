"""What the slow parts report while they work; the command line draws it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol, runtime_checkable

from onnx_tailor.quant.compiling import told_to

_COMPILING = "compiling kernels, once on this machine"


class Progress(Protocol):
    """Receives the work done, in bytes or another unit. Calls may come from several threads."""

    def start(self, what: str, total: int, unit: str = "bytes") -> None:
        """Begin a phase called `what` of `total` bytes (or `unit`, in the plural), ending the one before."""

    def advance(self, count: int) -> None:
        """Count `count` more bytes of the phase as done."""

    def finish(self) -> None:
        """End the last phase."""


@runtime_checkable
class Waiting(Protocol):
    """A `Progress` that also shows what a phase waits for. Calls may come from any thread."""

    def wait(self, what: str) -> None:
        """Show that the phase waits for `what`."""

    def go_on(self) -> None:
        """Show that it goes on."""


def shows_compiling(progress: Progress) -> AbstractContextManager[None]:
    """Return a block in which `progress` shows that kernels are being compiled, if it can."""
    if not isinstance(progress, Waiting):
        return nullcontext()
    return told_to(partial(progress.wait, _COMPILING), progress.go_on)


class Silent:
    """A `Progress` that shows nothing."""

    def start(self, what: str, total: int, unit: str = "bytes") -> None:
        """Ignore the phase."""

    def advance(self, count: int) -> None:
        """Ignore the bytes."""

    def finish(self) -> None:
        """Ignore the end."""
