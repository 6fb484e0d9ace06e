"""SHA-256 of files, read once from one end to the other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path

_CHUNK = 4 << 20
"""Bytes between two moments in which the hashing thread needs the interpreter, which others may be holding."""


class Hashing:
    """The SHA-256 of one file, begun; where `advance` breaks it off by raising, it can be gone on with later."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            OSError: it cannot be read.
        """
        self._file = FileIO(path)
        self._digest = hashlib.sha256()
        self._found: str | None = None
        status = os.fstat(self._file.fileno())
        self.stamp = status.st_ino, status.st_size, status.st_mtime_ns
        """Inode, bytes, and nanoseconds of the last change, before the first byte was read."""

    def finish(self, advance: Callable[[int], None] = lambda _: None) -> str:
        """Read the rest and return the digest in hexadecimal; `advance` hears of the bytes read.

        Raises:
            OSError: the file cannot be read.
        """
        if self._found is None:
            buffer = bytearray(_CHUNK)
            view = memoryview(buffer)
            while count := self._file.readinto(buffer):
                self._digest.update(view[:count])
                advance(count)
            self._found = self._digest.hexdigest()
            self.close()
        return self._found

    def close(self) -> None:
        """Close the file, of which no more is to be read."""
        self._file.close()


def sha256(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of a file in hexadecimal; `advance` hears of the bytes read.

    Raises:
        OSError: the file cannot be read.
    """
    hashing = Hashing(path)
    try:
        return hashing.finish(advance)
    finally:
        hashing.close()
