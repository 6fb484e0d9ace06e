"""The journal of a run: which tasks are written, so that a run that ended early can go on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_tailor.weights.files import DataFile

VERSION = 1


@dataclass(frozen=True)
class Record:
    """One finished task."""

    pieces: tuple[tuple[str, int, int, int], ...]
    """Of each piece written: the file, the offset, the length, and the CRC-32 of its bytes."""
    measured: tuple[float, ...]
    """What the job measured while it computed the task."""

    def matches(self, folder: Path) -> bool:
        """Whether the bytes on disk are still those that were written.

        This is why no byte need be flushed to the disk before its task is noted: a record that outlived its bytes,
        as after a loss of power, is found out here.
        """
        for name, offset, length, checksum in self.pieces:
            with (folder / name).open("rb") as file:
                file.seek(offset)
                content = file.read(length)
            if len(content) != length or zlib.crc32(content) != checksum:
                return False
        return True


class Journal:
    """Appends a line for each finished task. Calls may come from several threads."""

    def __init__(self, path: Path, records: Mapping[int, Record]) -> None:
        """Open the journal at `path`, which begins with `records`."""
        self.records = records
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def note(self, task: int, record: Record) -> None:
        """Write that a task is finished."""
        line = json.dumps([task, record.pieces, record.measured])
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def begin(path: Path, about: Mapping[str, Any]) -> Journal:
    """Start a new journal of the run that `about` describes."""
    path.write_text(json.dumps({"journal": VERSION, **about}) + "\n", encoding="utf-8")
    return Journal(path, {})


def resume(path: Path, about: Mapping[str, Any]) -> Journal | tuple[str, ...]:
    """Open the journal of an earlier run that did the same.

    Returns:
        The journal, or what differs between the two runs: keys of `about`.

    Raises:
        ValueError: the file is no journal.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1  # what is behind it was cut off while it was written
    first, *lines = content[:whole].decode().splitlines() or [""]
    header = json.loads(first)
    if not isinstance(header, dict):
        raise ValueError(first)
    expected = json.loads(json.dumps({"journal": VERSION, **about}))
    if header != expected:
        return tuple(key for key in expected if header.get(key) != expected[key])
    records = {}
    for line in lines:
        task, pieces, measured = json.loads(line)
        records[task] = Record(tuple((n, o, b, c) for n, o, b, c in pieces), tuple(measured))
    os.truncate(path, whole)
    return Journal(path, records)


def fingerprint(value: object) -> str:
    """Return a digest of everything that a value computes from: equal for equal work in another process."""
    return hashlib.sha256(_describe(value).encode()).hexdigest()


def _describe(value: object) -> str:
    if isinstance(value, DataFile):
        return f"{value.path.name}:{value.size}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}:{hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()}"
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if is_dataclass(value):
        inner = ", ".join(f"{f.name}={_describe(getattr(value, f.name))}" for f in fields(value) if f.compare)
        return f"{type(value).__name__}({inner})"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_describe(each) for each in value) + "]"
    return repr(value)
