"""What the slow parts report while they work; the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the work done, in bytes or another unit. Calls may come from several threads."""

    def start(self, what: str, total: int, unit: str = "bytes") -> None:
        """Begin a phase called `what` of `total` bytes (or `unit`, in the plural), ending the one before."""

    def advance(self, count: int) -> None:
        """Count `count` more bytes of the phase as done."""

    def finish(self) -> None:
        """End the last phase."""


class Silent:
    """A `Progress` that shows nothing."""

    def start(self, what: str, total: int, unit: str = "bytes") -> None:
        """Ignore the phase."""

    def advance(self, count: int) -> None:
        """Ignore the bytes."""

    def finish(self) -> None:
        """Ignore the end."""
