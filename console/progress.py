"""Draws the progress of a run on standard error: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from onnx_tailor.units import size

__all__ = ["Bar", "Lines", "progress"]

_PAUSE = 10.0
"""Seconds between two plain lines: what they are written to is most likely a log."""


def progress() -> Bar | Lines:
    """Return the progress that suits standard error."""
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal else Lines(console)


class _Amount(ProgressColumn):
    """What is done of all there is, and how much a second, in the phase's own unit."""

    def render(self, task: Task) -> Text:
        """Return "12 MB of 1.07 GB, 300 MB/s", or the like in another unit; nothing for what has no amount."""
        if task.total is None:
            return Text()
        unit = task.fields["unit"]
        speed = task.finished_speed or task.speed
        pace = f", {_amount(int(speed), unit)}/s" if speed else ""
        return Text(f"{_amount(int(task.completed), unit)} of {_amount(int(task.total or 0), unit)}{pace}")


class Bar:
    """A bar for each phase, with its amount, the speed and the time left."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Amount(),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task: TaskID | None = None
        self._awaited: TaskID | None = None

    def start(self, what: str, total: int, unit: str = "bytes") -> None:
        """Add the bar of a phase called `what`, of `total` bytes or `unit`."""
        self._bars.start()
        self._task = self._bars.add_task(what, total=total, unit=unit)

    def advance(self, count: int) -> None:
        """Move the bar on by `count`."""
        if self._task is not None:
            self._bars.advance(self._task, count)

    def wait(self, what: str) -> None:
        """Add a bar without an end."""
        self._bars.start()
        self._awaited = self._bars.add_task(what, total=None, unit="")

    def go_on(self) -> None:
        """Take that bar away."""
        if self._awaited is not None:
            self._bars.remove_task(self._awaited)
        self._awaited = None

    def finish(self) -> None:
        """Leave the bars as they are and give the terminal back; safe to call twice."""
        self._task = None
        self._bars.stop()


class Lines:
    """At most a line every ten seconds, one at the end of each phase, and two about what a phase waits for."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._lock = Lock()
        self._what = ""
        self._total = 0
        self._unit = ""
        self._done = 0
        self._began = self._printed = self._waits = clock()
        self._awaited = ""

    def start(self, what: str, total: int, unit: str = "bytes") -> None:
        """Name the phase."""
        self.finish()
        with self._lock:
            self._what, self._total, self._unit, self._done = what, total, unit, 0
            self._began = self._printed = self._clock()

    def advance(self, count: int) -> None:
        """Count the bytes, and print a line where the last one is long ago."""
        with self._lock:
            self._done += count
            now = self._clock()
            if not self._total or now - self._printed < _PAUSE:
                return
            self._printed = now
            percent = min(100, 100 * self._done // self._total)
            self._print(f"{self._what}: {percent} % of {_amount(self._total, self._unit)}")

    def wait(self, what: str) -> None:
        """Print what is waited for."""
        with self._lock:
            self._awaited, self._waits = what, self._clock()
            self._print(what)

    def go_on(self) -> None:
        """Print how long that took."""
        with self._lock:
            self._print(f"{self._awaited}: {self._clock() - self._waits:.1f} s")

    def finish(self) -> None:
        """End the phase with a line; safe to call twice."""
        with self._lock:
            if self._total and self._done >= self._total:
                self._print(f"{self._what}: {_amount(self._total, self._unit)} in {self._clock() - self._began:.1f} s")
            self._total = 0

    def _print(self, line: str) -> None:
        """Print a line that rich neither wraps nor colours."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _amount(count: int, unit: str) -> str:
    """Return a number of bytes as "1.07 GB", of another unit as "3,072 tokens"."""
    return size(count) if unit == "bytes" else f"{count:,} {unit}"
