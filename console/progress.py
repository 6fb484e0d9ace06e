"""Draws the progress of a run on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from threading import Lock

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from onnx_tailor.console.units import size

__all__ = ["Bar", "Lines", "progress"]

_STEP = 10
"""Percent between two plain lines."""


def progress() -> Bar | Lines:
    """Return the progress that suits standard error."""
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal else Lines(console)


class Bar:
    """A bar for each phase, with its bytes, their speed and the time left."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task: TaskID | None = None

    def start(self, what: str, total: int) -> None:
        """Add the bar of a phase called `what`, of `total` bytes."""
        self._bars.start()
        self._task = self._bars.add_task(what, total=total)

    def advance(self, count: int) -> None:
        """Move the bar on by `count` bytes."""
        if self._task is not None:
            self._bars.advance(self._task, count)

    def finish(self) -> None:
        """Leave the bars as they are and give the terminal back; safe to call twice."""
        self._task = None
        self._bars.stop()


class Lines:
    """A line for every tenth of a phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = Lock()
        self._what = ""
        self._total = 0
        self._done = 0
        self._next = _STEP

    def start(self, what: str, total: int) -> None:
        """Name the phase."""
        with self._lock:
            self._what, self._total, self._done, self._next = what, total, 0, _STEP
            self._print(f"{what}: {size(total)}" if total else what)

    def advance(self, count: int) -> None:
        """Count the bytes, and print a line where they pass the next tenth."""
        with self._lock:
            self._done += count
            if not self._total or 100 * self._done < self._next * self._total:
                return
            percent = min(100, 100 * self._done // self._total)
            self._next = percent - percent % _STEP + _STEP
            self._print(f"{self._what}: {percent} % of {size(self._total)}")

    def finish(self) -> None:
        """Forget the phase; its last line has been printed."""
        with self._lock:
            self._total = 0

    def _print(self, line: str) -> None:
        """Print a line that rich neither wraps nor colours."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
