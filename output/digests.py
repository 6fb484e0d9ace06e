"""The BLAKE3 of the files that are read, for the report."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from onnx_tailor.errors import ModelError
from onnx_tailor.report import InputDigest
from onnx_tailor.weights.digest import Hashing, blake3_of
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.tasks import Executor


class Digests:
    """Hashes inputs on threads of its own or on what carries tasks out, beside work that reads them too.

    A context manager, whose end ends the thread, whether it is done or not.
    """

    def __init__(self, executor: Executor) -> None:
        """Begin with no file; `executor` hashes the inputs."""
        self._executor = executor
        self._pool = ThreadPoolExecutor(executor.hashers)
        self._futures: dict[Path, Future[InputDigest]] = {}
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

    def of(self, files: Iterable[Path]) -> tuple[InputDigest, ...]:
        """Return the digests of files that were begun, waiting for them.

        Raises:
            ModelError: a file cannot be read.
        """
        return tuple(self._futures[file].result() for file in files)

    def _any(self, file: Path | DataFile) -> InputDigest:
        path = file if isinstance(file, Path) else file.path
        try:
            size = path.stat().st_size if isinstance(file, Path) else file.size
            return InputDigest(name=path.name, bytes=size, blake3=self._blake3(file))
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror})") from error

    def _blake3(self, file: Path | DataFile) -> str:
        if isinstance(file, Path):
            return blake3_of(file, self._go_on)
        begun = self._begun.get(file.path)
        if begun is not None and begun.stamp == file.stamp:
            return begun.finish(self._go_on)
        return self._executor.blake3(file, self._go_on)

    def _go_on(self, _: int) -> None:
        if self._stopped.is_set():
            raise CancelledError
