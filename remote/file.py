"""A model's file on an object store, read by ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from onnx_tailor.errors import ModelError, innermost
from onnx_tailor.remote import Url
from onnx_tailor.remote.spool import BLOCK, spool
from onnx_tailor.remote.stores import file_system, identity
from onnx_tailor.weights.files import DataFile

_FEW = 32
"""Rows for which a request each is less than the blocks that they lie in."""
_STREAMS = 4
"""Ranges that are fetched at once where a file is read from one end to the other."""


@dataclass(frozen=True)
class RemoteFile(DataFile):
    """A `DataFile` whose `path` is but its name on this machine."""

    url: Url = field(default=Url(""), compare=False)

    @classmethod
    def at(cls, path: Path, url: Url) -> RemoteFile:
        """Note the file's identity.

        Raises:
            ModelError: there is no such file, or it cannot be read.
        """
        files, inside = file_system(url)
        try:
            stamp = identity(files.info(inside))
        except Exception as error:  # every store's client raises its own
            raise ModelError(f"{url}: the model's file cannot be read ({innermost(error)})") from error
        return cls(path, stamp[1], stamp, url=url)

    def __reduce__(self) -> tuple[Callable[..., RemoteFile], tuple[object, ...]]:
        """Be the same file on another machine."""
        return _again, (self.path, self.size, self.stamp, self.url)

    @property
    def is_far(self) -> bool:
        """True."""
        return True

    def read_into(self, offset: int, buffer: npt.NDArray[np.uint8]) -> None:
        """Fill the contiguous `buffer` with the file's bytes from `offset` on, by one request.

        Raises:
            ModelError: the file cannot be read, or became shorter.
        """
        buffer.data.cast("B")[:] = self._fetch(offset, offset + buffer.nbytes)

    def read_rows(self, offset: int, step: int, rows: npt.NDArray[np.uint8]) -> None:
        """Fill each of `rows` from the file; they begin `step` bytes apart, often too short for a request each.

        Blocks of the file go to this machine's disk, where the next rows find them; a few small ones come alone.

        Raises:
            ModelError: the file cannot be read, or became shorter.
        """
        few = len(rows) <= _FEW and rows.nbytes < BLOCK
        for index in range(len(rows)):
            if few:
                self.read_into(offset + index * step, rows[index])
                continue
            spool().read_into(self.url, self.size, offset + index * step, rows[index].data.cast("B"), self._fetch)

    def require_unchanged(self) -> None:
        """Compare the file with what it was when the model was loaded.

        Raises:
            ModelError: the file was replaced, changed or removed.
        """
        if RemoteFile.at(self.path, self.url).stamp != self.stamp:
            raise ModelError(f"{self.url}: the file was changed during the run; run again")

    def blake3(self, advance: Callable[[int], None] = lambda _: None) -> str:
        """Return the BLAKE3 of the file in hexadecimal; `advance` hears of the bytes read.

        Raises:
            ModelError: the file cannot be read.
        """
        digest = blake3()
        for block in self._blocks():
            digest.update(block)
            advance(len(block))
        return digest.hexdigest()

    def _blocks(self) -> Iterator[bytes]:
        """Yield the file, a few blocks of it in memory."""
        with ThreadPoolExecutor(_STREAMS) as pool:
            starts = range(0, self.size, _STREAMS * BLOCK)
            for first in starts:
                ends = [min(first + i * BLOCK, self.size) for i in range(_STREAMS + 1)]
                yield from pool.map(self._fetch, ends[:-1], ends[1:])

    def _fetch(self, start: int, stop: int) -> bytes:
        if start == stop:
            return b""
        files, inside = self._store
        try:
            content: bytes = files.cat_file(inside, start=start, end=stop)
        except Exception as error:  # every store's client raises its own
            raise ModelError(f"{self.url}: cannot be read any more ({innermost(error)}); run again") from error
        if len(content) != stop - start:
            raise ModelError(f"{self.url}: ends at byte {start + len(content)} while it is read; it was cut off")
        return content

    @cached_property
    def _store(self) -> tuple[Any, str]:
        """Return the file system, after a look whether this is still the file that the run began with."""
        self.require_unchanged()
        return file_system(self.url)


def _again(path: Path, size: int, stamp: tuple[int | None, int, int], url: Url) -> RemoteFile:
    return RemoteFile(path, size, stamp, url=url)
