"""Tells who wants to know that kernels are being compiled: for seconds, and once on a machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["compiling", "told_to"]

_lock = threading.Lock()
_listeners: list[tuple[Callable[[], None], Callable[[], None]]] = []
_running: list[int] = []
"""The threads that compile; one may begin within another's."""


@contextmanager
def told_to(begins: Callable[[], None], ends: Callable[[], None]) -> Iterator[None]:
    """Call `begins` when the first thread starts to compile, and `ends` when none does any more; within the block."""
    pair = (begins, ends)
    with _lock:
        _listeners.append(pair)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(pair)


@contextmanager
def compiling() -> Iterator[None]:
    """Tell the listeners that the block compiles."""
    began()
    try:
        yield
    finally:
        ended()


def began() -> None:
    """Tell the listeners that this thread compiles from here on."""
    with _lock:
        _running.append(threading.get_ident())
        if len(_running) == 1:
            for begins, _ in _listeners:
                begins()


def ended() -> None:
    """Tell them that it does no more."""
    with _lock:
        _running.remove(threading.get_ident())
        if not _running:
            for _, ends in _listeners:
                ends()
