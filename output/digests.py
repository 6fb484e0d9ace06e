"""The SHA-256 of files, for the report."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from onnx_tailor.errors import ModelError
from onnx_tailor.report import FileDigest
from onnx_tailor.weights.digest import Hashing, sha256
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.tasks import Executor


class Digests:
    """Hashes files on threads of its own or on what carries tasks out, beside work that reads them too.

    A context manager, whose end ends the thread, whether it is done or not.
    """

    def __init__(self, executor: Executor) -> None:
        """Begin with no file; `executor` hashes the inputs."""
        self._executor = executor
        self._pool = ThreadPoolExecutor(executor.hashers)
        self._futures: dict[Path, Future[FileDigest]] = {}
        self._begun: dict[Path, Hashing] = {}
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def take_over(self, begun: Mapping[Path, Hashing]) -> None:
        """Go on with what was begun, once its file is named, where that is the same file still and was not changed."""
        self._begun.update(begun)

    def begin(self, files: Iterable[Path | DataFile]) -> None:
        """Let `files` be hashed after those that were named before, each once."""
        for file in files:
            path = file if isinstance(file, Path) else file.path
            if path not in self._futures:
                self._futures[path] = self._pool.submit(self._any, file)

    def of(self, files: Iterable[Path]) -> tuple[FileDigest, ...]:
        """Return the digests of files that were begun, waiting for them.

        Raises:
            ModelError: a file cannot be read.
        """
        return tuple(self._futures[file].result() for file in files)

    def _any(self, file: Path | DataFile) -> FileDigest:
        if isinstance(file, Path):
            return digest(file, advance=self._go_on)
        begun = self._begun.get(file.path)
        try:
            if begun is not None and begun.stamp == file.stamp:
                found = begun.finish(self._go_on)
            else:
                found = self._executor.sha256(file, self._go_on)
        except OSError as error:
            raise ModelError(f"{file.path}: cannot be read ({error.strerror})") from error
        return FileDigest(name=file.path.name, bytes=file.size, sha256=found)

    def _go_on(self, _: int) -> None:
        if self._stopped.is_set():
            raise CancelledError


def digest(path: Path, above: Path | None = None, advance: Callable[[int], None] = lambda _: None) -> FileDigest:
    """Return the SHA-256 of a file, named from the folder `above` it; `advance` hears of the bytes read.

    Raises:
        ModelError: the file cannot be read.
    """
    name = path.relative_to(above or path.parent).as_posix()
    try:
        return FileDigest(name=name, bytes=path.stat().st_size, sha256=sha256(path, advance))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
