"""The end of a file's writing: it is hashed for the report, and reaches the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from onnx_tailor.errors import ModelError
from onnx_tailor.report import FileDigest
from onnx_tailor.weights.digest import sha256_of
from onnx_tailor.weights.pool import workers

__all__ = ["Closing", "flush"]


class Closing:
    """Hashes and flushes files of a folder on threads of its own, while others are still written.

    A context manager, whose end drops what has not begun.
    """

    def __init__(self, folder: Path) -> None:
        """Begin with no file."""
        self._folder = folder
        self._flusher = ThreadPoolExecutor(1)
        self._hashers = ThreadPoolExecutor(workers())
        self._flushed: list[Future[None]] = []
        self._digests: dict[str, Future[FileDigest]] = {}

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what has begun, and drop the rest."""
        for pool in (self._flusher, self._hashers):
            pool.shutdown(cancel_futures=True)

    def begin(self, names: Iterable[str], advance: Callable[[int], None] = lambda _: None) -> None:
        """Hash and flush the files of these names, to which nobody writes any more; `advance` hears of their bytes."""
        for name in names:
            path = self._folder / name
            self._flushed.append(self._flusher.submit(flush, path))
            self._digests[name] = self._hashers.submit(_digest, path, self._folder, advance)

    def of(self, names: Iterable[str]) -> tuple[FileDigest, ...]:
        """Return the digests of files that were begun, when all that was begun has reached the disk.

        Raises:
            ModelError: a file cannot be read.
            OSError: a file does not reach the disk.
        """
        for flushed in self._flushed:
            flushed.result()
        return tuple(self._digests[name].result() for name in names)


def flush(path: Path) -> None:
    """Let a file reach the disk.

    Raises:
        OSError: it does not.
    """
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _digest(path: Path, above: Path, advance: Callable[[int], None]) -> FileDigest:
    """Return the SHA-256 of a file, named from the folder `above` it; `advance` hears of the bytes read.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        name = path.relative_to(above).as_posix()
        return FileDigest(name=name, bytes=path.stat().st_size, sha256=sha256_of(path, advance))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
