"""SHA-256 of files, read once from one end to the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path

_CHUNK = 4 << 20
"""Bytes between two moments in which the hashing thread needs the interpreter, which others may be holding."""


def sha256(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of a file in hexadecimal; `advance` hears of the bytes read.

    Raises:
        OSError: the file cannot be read.
    """
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
    view = memoryview(buffer)
    with FileIO(path) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            advance(count)
    return digest.hexdigest()
