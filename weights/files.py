"""Files that hold weights: safe locations, and reads that notice a file that is short or was replaced."""

from __future__ import annotations

import os
import stat
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path, PureWindowsPath

import numpy as np
import numpy.typing as npt

from onnx_tailor.errors import ModelError
from onnx_tailor.weights.digest import blake3_of

_OPEN = 64
"""Files that a thread keeps open: some exporters write a file for each weight, and a process may open some 1000."""
_recent = threading.local()


@dataclass(frozen=True)
class DataFile:
    """A file of weights, open for reading from any thread. Equal when the path is equal.

    Pickled, it is the file of that path on another machine, where inodes may differ.
    """

    path: Path
    size: int = field(compare=False)
    """Bytes, when the model was loaded."""
    stamp: tuple[int | None, int, int] = field(compare=False, repr=False)
    """Inode, bytes, and nanoseconds of the last change, when the model was loaded; no inode on another machine."""
    _local: threading.local = field(compare=False, repr=False, default_factory=threading.local)

    @classmethod
    def open(cls, path: Path) -> DataFile:
        """Note the file's identity.

        Raises:
            ModelError: the file is missing, cannot be read, or is no ordinary file.
        """
        try:
            require_ordinary(path)
            with FileIO(path) as file:
                stamp = _stamp(file)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                advice = "; put it beside the ONNX file" if path.suffix != ".onnx" else ""
                raise ModelError(f"{path}: is missing{advice}") from error
            raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
        return cls(path, stamp[1], stamp)

    def __reduce__(self) -> tuple[Callable[..., DataFile], tuple[object, ...]]:
        """Leave out what holds on one machine alone."""
        return DataFile, (self.path.absolute(), self.size, (None, *self.stamp[1:]))

    def read_into(self, offset: int, buffer: npt.NDArray[np.uint8]) -> None:
        """Fill the contiguous `buffer` with the file's bytes from `offset` on.

        Ordinary reads rather than a memory map: mapped pages count as the process's memory, and a file cut off while
        it is mapped kills the process.

        Raises:
            ModelError: the file became shorter or was replaced since the model was loaded.
        """
        self._fill(self._handle(), offset, buffer.data.cast("B"))

    @property
    def is_far(self) -> bool:
        """Whether every read is a request to another machine."""
        return False

    def read_rows(self, offset: int, step: int, rows: npt.NDArray[np.uint8]) -> None:
        """Fill each of `rows` from the file; they begin `step` bytes apart.

        Raises:
            ModelError: the file became shorter or was replaced since the model was loaded.
        """
        handle, content, width = self._handle(), rows.reshape(-1).data, rows.shape[1]
        for index in range(len(rows)):  # many, where a weight is stored by columns
            self._fill(handle, offset + index * step, content[index * width : (index + 1) * width])

    def blake3(self, advance: Callable[[int], None] = lambda _: None) -> str:
        """Return the BLAKE3 of the file in hexadecimal; `advance` hears of the bytes read.

        Raises:
            OSError: the file cannot be read.
        """
        return blake3_of(self.path, advance)

    def _fill(self, handle: FileIO, offset: int, buffer: memoryview) -> None:
        done = _read_at(handle, offset, buffer)
        while done < len(buffer):
            count = _read_at(handle, offset + done, buffer[done:])
            if not count:
                raise ModelError(f"{self.path}: ends at byte {offset + done} while it is read; it was cut off")
            done += count

    def _handle(self) -> FileIO:
        handle: FileIO | None = getattr(self._local, "handle", None)
        if handle is None:
            try:
                handle = self._local.handle = FileIO(self.path)
            except OSError as error:
                raise ModelError(f"{self.path}: cannot be read any more ({error.strerror}); {self._advice}") from error
            if not self._is_same(handle):
                raise ModelError(f"{self.path}: the file was changed during the run; {self._advice}")
        _close_the_oldest(self)
        return handle

    def close(self) -> None:
        """Close this thread's handle; the next read opens another."""
        handle: FileIO | None = self._local.__dict__.pop("handle", None)
        if handle is not None:
            handle.close()

    def require_unchanged(self) -> None:
        """Compare the file with what it was when the model was loaded.

        Raises:
            ModelError: the file was replaced, changed or removed.
        """
        try:
            with FileIO(self.path) as file:
                same = self._is_same(file)
        except OSError:
            same = False
        if not same:
            raise ModelError(f"{self.path}: the file was changed during the run; {self._advice}")

    def _is_same(self, file: FileIO) -> bool:
        inode, *rest = _stamp(file)
        return rest == [*self.stamp[1:]] and self.stamp[0] in {None, inode}

    @property
    def _advice(self) -> str:
        return "run again" if self.stamp[0] is not None else "every worker must see the model's files under their paths"


if sys.platform == "win32":

    def _read_at(file: FileIO, offset: int, buffer: memoryview) -> int:
        """Read what the file has from `offset` on, or a part of it; return the bytes read."""
        file.seek(offset)
        return file.readinto(buffer) or 0
else:

    def _read_at(file: FileIO, offset: int, buffer: memoryview) -> int:
        """Read what the file has from `offset` on, or a part of it; return the bytes read."""
        return os.preadv(file.fileno(), (buffer,), offset)


def _close_the_oldest(used: DataFile) -> None:
    """Close the file that this thread has not read for longest where it has more than `_OPEN` open."""
    files: OrderedDict[int, weakref.ref[DataFile]] = _recent.__dict__.setdefault("files", OrderedDict())
    files[id(used)] = weakref.ref(used)
    files.move_to_end(id(used))
    while len(files) > _OPEN:
        oldest = files.popitem(last=False)[1]()
        if oldest is not None:
            oldest.close()


def require_ordinary(path: Path) -> None:
    """Refuse what is no ordinary file, before opening it: a FIFO would wait for ever, a device has no end.

    Raises:
        ModelError: the path is a folder, a FIFO, a device or a socket.
        OSError: there is nothing at the path.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ModelError(f"{path}: is no ordinary file; put the model's files into one folder and name the ONNX file")


@dataclass(frozen=True)
class InlineBytes:
    """The bytes of a weight that the ONNX file holds value by value; reads like a `DataFile`. Equal when equal."""

    content: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content)

    def read_into(self, offset: int, buffer: npt.NDArray[np.uint8]) -> None:
        """Fill the contiguous `buffer` with the bytes from `offset` on."""
        buffer.data.cast("B")[:] = self.content[offset : offset + buffer.nbytes]

    def read_rows(self, offset: int, step: int, rows: npt.NDArray[np.uint8]) -> None:
        """Fill each of `rows`, which begin `step` bytes apart."""
        for index in range(len(rows)):
            self.read_into(offset + index * step, rows[index])


def _stamp(file: FileIO) -> tuple[int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def resolve_location(model: Path, location: str, weight: str) -> Path:
    """Return the path of an external-data `location`, which the ONNX format says lies within the folder of `model`.

    A model is a stranger's file: a location that leads elsewhere would copy any file of this machine into the output.
    A link is followed within the folder; where the ONNX file is itself a link, as in a download cache, also into the
    folder that it leads to.

    Raises:
        ModelError: the location is empty, absolute, or leads out of the folder by `..` or by a link.
    """
    parts = PureWindowsPath(location)  # understands both separators and drive letters
    if not location or "\0" in location or parts.is_absolute() or parts.drive or parts.root or ".." in parts.parts:
        raise ModelError(
            f"weight {weight}: its data location {location!r} is not inside the model's folder; "
            "only files beside the ONNX file are read"
        )
    path = model.parent / Path(*parts.parts)
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ModelError(f"weight {weight}: its data file {path} cannot be found ({error})") from error
    if not any(target.is_relative_to(folder) for folder in (model.parent.resolve(), model.resolve().parent)):
        raise ModelError(
            f"weight {weight}: its data file {path} is a link out of the model's folder; "
            "replace the link by the file itself"
        )
    return path
