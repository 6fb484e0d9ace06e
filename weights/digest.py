"""Digests of files, read once from one end to the other: BLAKE3 of what is read, SHA-256 of what is written.

Inputs are large: one thread does two to four times as many bytes of BLAKE3 as of SHA-256, which would take longer than
reading them. Outputs are small and travel on; SHA-256 is what the hubs that they go to show.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from blake3 import blake3

_CHUNK = 4 << 20
"""Bytes between two moments in which the hashing thread needs the interpreter, which others may be holding."""


class _Digest(Protocol):
    def update(self, data: memoryview, /) -> Any: ...

    def hexdigest(self) -> str: ...


class Hashing:
    """The digest of one file, begun; where `advance` breaks it off by raising, it can be gone on with later."""

    def __init__(self, path: Path, kind: Callable[[], _Digest] = blake3) -> None:
        """Open the file.

        Raises:
            OSError: it cannot be read.
        """
        self._file = FileIO(path)
        self._digest = kind()
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


def blake3_of(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """Return the BLAKE3 of a file in hexadecimal; `advance` hears of the bytes read.

    Raises:
        OSError: the file cannot be read.
    """
    return _whole(Hashing(path), advance)


def sha256_of(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of a file in hexadecimal; `advance` hears of the bytes read.

    Raises:
        OSError: the file cannot be read.
    """
    return _whole(Hashing(path, hashlib.sha256), advance)


def _whole(hashing: Hashing, advance: Callable[[int], None]) -> str:
    try:
        return hashing.finish(advance)
    finally:
        hashing.close()
