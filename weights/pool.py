"""How many threads work on the weights, and how much memory they may use together."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

BUDGET = 256 << 20
"""Bytes of all work in progress: with many processors, memory and not their number limits the threads."""


def workers() -> int:
    """Return the number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


class Memory:
    """Lets threads work as long as their work fits into a budget together; one that does not fit at all works alone."""

    def __init__(self, budget: int) -> None:
        """Begin with nothing in use."""
        self._budget = budget
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, count: int) -> Iterator[None]:
        """Wait until `count` bytes are free, and hold them for the block. A thread holds one reservation at a time."""
        count = min(count, self._budget)
        with self._changed:
            self._changed.wait_for(lambda: self._used + count <= self._budget)
            self._used += count
        try:
            yield
        finally:
            with self._changed:
                self._used -= count
                self._changed.notify_all()


memory = Memory(BUDGET)
"""The budget of this process."""
