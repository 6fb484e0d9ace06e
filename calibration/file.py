"""The calibration file: an npz archive that is written input by input and read likewise.

`np.load` opens it. The entry `calibration` holds a JSON text: the format's number, the model and its weights' hashes,
and the inputs in order. Input number i has the entries `i.mean_square` float32 [K] and, in a file with Hessians,
`i.hessian` float32 [K, K], the means of x^2 and of x x^T; `tokens` int64 [n, length] are the windows that the model ran
on, and `token_counts` int64 [V] tells how often each row of the table was used.

A run of `gptaq` makes another file of it, where some inputs have `i.drift` float32 [K, K] as well: x - z is about that
times z, their value in the model as it is being quantized.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from onnx_tailor.errors import UsageError

FORMAT = 1
_HEADER = "calibration"
_PIECE = 1 << 20
"""Bytes that are read at once."""


class Writer:
    """Adds one array after the other, none of which stays in memory."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Store `array` under `name`."""
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array(entry, array, allow_pickle=False)

    def header(self, content: Mapping[str, Any]) -> None:
        """Store what the file is about."""
        self.add(_HEADER, np.array(json.dumps({"format": FORMAT, **content}, ensure_ascii=False)))


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Give a writer whose file appears at `path` when the block ends well, and leaves no trace otherwise.

    Raises:
        UsageError: nothing can be written there.
    """
    work = path.parent / f".{path.name}.{os.getpid()}"
    try:
        file = work.open("xb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        with file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            yield Writer(archive)
        work.replace(path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class InputStatistics:
    """What a file holds of one input; the arrays are read anew at every call. Equal where what it holds is.

    So a run that calibrates itself can be resumed, though its file lies in another place each time.
    """

    path: Path = field(compare=False)
    number: int
    name: str
    columns: int
    count: int
    """Vectors that the means are over; 0 for an expert that no token reached."""
    has_hessian: bool
    has_drift: bool
    checksums: tuple[int, ...]
    """CRC-32 of each array, as the archive has it."""
    stamp: int = field(compare=False)
    """When the file was written, to see that it was not replaced since."""

    def __reduce__(self) -> tuple[type[InputStatistics], tuple[object, ...]]:
        """Name the file so that another process finds it, whatever its current folder."""
        return InputStatistics, (self.path.absolute(), *(getattr(self, f.name) for f in fields(self)[1:]))

    def mean_square(self) -> npt.NDArray[np.float32]:
        """Return the mean of x^2 [columns]."""
        return self._read("mean_square", (self.columns,))

    def hessian(self) -> npt.NDArray[np.float32]:
        """Return the mean of x x^T [columns, columns]."""
        return self._read("hessian", (self.columns, self.columns))

    def drift(self) -> npt.NDArray[np.float32]:
        """Return D [columns, columns]: x - z is about D z, where z is the input in the quantized model."""
        return self._read("drift", (self.columns, self.columns))

    def _read(self, what: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Read an array.

        Raises:
            UsageError: the file is damaged or was replaced.
        """
        with _opened(self.path) as (archive, stamp):
            if stamp != self.stamp:
                raise UsageError(f"{self.path}: the file was changed during the run; run again")
            try:
                with archive.zip.open(f"{self.number}.{what}.npy") as entry:
                    array = _float32(entry, shape)
            except KeyError as error:
                raise _damaged(self.path, f"it lacks {what} of {self.name}") from error
        if not np.isfinite(array).all():
            raise _damaged(self.path, f"{what} of {self.name} holds a NaN or an infinity")
        return array


@dataclass(frozen=True)
class Calibration:
    """A calibration file, opened."""

    path: Path
    model: str
    """Name of the ONNX file that ran."""
    source: str
    """Where the tokens came from."""
    random: bool
    tokens: int
    inputs: Mapping[str, InputStatistics]
    """By the name of the activation."""
    weights: Mapping[str, str]
    """Fingerprints, by the names of the weights."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Why a projection's input could not be watched, by the name of the activation."""

    def windows(self) -> npt.NDArray[np.int64]:
        """Return the tokens [n, length] that the model ran on.

        Raises:
            UsageError: the file is of a version that did not keep them.
        """
        with _opened(self.path) as (archive, _):
            if "tokens" not in archive:
                raise UsageError(f"{self.path}: holds no tokens, which `method: gptaq` needs; calibrate again")
            return _entry(archive, "tokens", self.path)

    def token_counts(self) -> npt.NDArray[np.int64]:
        """Return how often each token occurred [V], up to the largest that did."""
        with _opened(self.path) as (archive, _):
            return _entry(archive, "token_counts", self.path)


def read(path: Path) -> Calibration:
    """Open a calibration file; its arrays stay in it.

    Raises:
        UsageError: the file is missing, or no calibration file.
    """
    with _opened(path) as (archive, stamp):
        if _HEADER not in archive:
            raise _damaged(path, "it is an npz archive of something else")
        try:
            header = json.loads(str(_entry(archive, _HEADER, path)))
            if header["format"] != FORMAT:
                raise UsageError(f"{path}: has format {header['format']}, but this onnx-tailor reads {FORMAT}")
            inputs = {
                each["name"]: InputStatistics(
                    path,
                    number,
                    each["name"],
                    each["columns"],
                    each["count"],
                    header["hessians"],
                    each.get("drift", False),
                    _checksums(archive, number),
                    stamp,
                )
                for number, each in enumerate(header["inputs"])
            }
            return Calibration(
                path,
                header["model"],
                header["source"],
                header["random"],
                header["tokens"],
                inputs,
                header["weights"],
                header["skipped"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, f"its header cannot be read: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, int]]:
    """Give the archive and the time at which it was written."""
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":  # else numpy would speak of loading it unsafely
                raise ValueError("it is no archive of arrays")
            file.seek(0)
            stamp = os.fstat(file.fileno()).st_mtime_ns
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            yield archive, stamp
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _damaged(path, reason) from error


def _checksums(archive: Any, number: int) -> tuple[int, ...]:
    names = [f"{number}.{what}.npy" for what in ("mean_square", "hessian", "drift")]
    return tuple(each.CRC for each in archive.zip.infolist() if each.filename in names)


def _entry(archive: Any, name: str, path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = archive[name]
    except KeyError as error:
        raise _damaged(path, f"it lacks {name}") from error
    return array


def _float32(entry: IO[bytes], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Read an array of known type and shape.

    numpy's own reader parses the header with `ast`, which Python 3.11 does not survive when a kernel is compiled on
    another thread at that moment (CPython issue 106905).

    Raises:
        ValueError: the entry holds something else.
    """
    major, _ = np.lib.format.read_magic(entry)
    size = int.from_bytes(entry.read(2 if major == 1 else 4), "little")
    header = entry.read(size).decode("latin-1")
    if "'descr': '<f4'" not in header or "'fortran_order': False" not in header or f"'shape': {shape}" not in header:
        raise ValueError(f"an array is not float32{list(shape)}")
    array = np.empty(shape, np.float32)
    left = array.reshape(-1).view(np.uint8).data
    while len(left):
        content = entry.read(min(len(left), _PIECE))
        if not content:
            raise ValueError("an array is cut off")
        left[: len(content)] = content
        left = left[len(content) :]
    return array


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"{path}: is no calibration file that can be read ({why}); make it with `onnx-tailor calibrate`")
