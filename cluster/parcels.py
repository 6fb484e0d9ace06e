"""Tasks in parcels: what one message tells a worker to do."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from onnx_tailor import __version__
from onnx_tailor.weights.files import InlineBytes
from onnx_tailor.weights.jobs import Job
from onnx_tailor.weights.journal import Record
from onnx_tailor.weights.tasks import Destination, Task
from onnx_tailor.weights.view import View

PARCEL_BYTES = 64 << 20
"""About how many bytes the tasks of a parcel read: a worker should be busy for much longer than a message takes."""
_WHOLE = 512 << 20
"""The same where a weight is read across its rows from an object store: one worker should fetch it, and not several."""
_DESCRIPTION = 1 << 20
"""Bytes that the description of a job may take, besides the files that it names."""


@dataclass(frozen=True)
class Parcel:
    """Tasks for one worker, one after the other."""

    tasks: tuple[Task, ...]
    folder: str
    """The output in the making, as this machine names it."""
    token_file: str
    token: str
    """What the run wrote into that file: a worker that reads it there sees the same folder."""
    build: str
    """The code that makes the bytes."""


@dataclass(frozen=True)
class Delivery:
    """What became of a parcel."""

    worker: str
    records: tuple[Record, ...]
    """For each task, what the journal is to note."""
    contents: tuple[bytes, ...] | None
    """The bytes of every piece of the records; None where the worker wrote them into the folder itself."""


def parcels(tasks: Iterable[Task], to: Destination, token: str, keep: Callable[[Task], None]) -> Iterator[Parcel]:
    """Put tasks that follow each other into parcels; those that only this process can carry out go to `keep`.

    These are tasks over values that are in no file, such as large ones that a pass computed in memory.
    """
    build, held, size = build_name(), [], 0
    portable: tuple[Job, bool] | None = None
    for task in tasks:
        if portable is None or portable[0] is not task.job:
            portable = (task.job, len(pickle.dumps(task.job)) <= _DESCRIPTION)
        if not portable[1]:
            keep(task)
            continue
        held.append(task)
        size += task.cost
        if size >= (_WHOLE if _is_far_and_turned(task.job) else PARCEL_BYTES):
            yield Parcel(tuple(held), str(to.folder), str(to.token), token, build)
            held, size = [], 0
    if held:
        yield Parcel(tuple(held), str(to.folder), str(to.token), token, build)


def _is_far_and_turned(job: Job) -> bool:
    view = getattr(job, "view", None)
    return isinstance(view, View) and view.turned and not isinstance(view.file, InlineBytes) and view.file.is_far


def build_name() -> str:
    """Return the version and a digest of the code that makes an output's bytes."""
    root = Path(__file__).parents[1]
    files = sorted(file for room in ("quant", "weights") for file in (root / room).glob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    return f"{__version__}-{digest.hexdigest()[:12]}"
