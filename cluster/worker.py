"""What runs on a worker of the cluster."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from threadpoolctl import threadpool_limits

from onnx_tailor.cluster.parcels import Delivery, Parcel, build_name
from onnx_tailor.errors import ModelError, OutputError, UsageError
from onnx_tailor.weights.data_folder import DataFolder


def deliver(parcel: Parcel, worker: str) -> Delivery:
    """Carry a parcel out. The bytes go into the output's folder where this machine sees it, else into the delivery.

    Raises:
        ModelError: a source file is not here, was cut off or replaced, or a weight cannot be computed.
        OutputError: other code runs here than where the parcel comes from.
        OSError: a file cannot be written.
    """
    if build() != parcel.build:
        raise OutputError(
            f"worker {worker} runs onnx-tailor {build()} and this process {parcel.build}; install the same everywhere"
        )
    _one_blas_thread()
    try:
        return _carried_out(parcel, worker)
    except (ModelError, UsageError) as error:
        raise type(error)(f"{error} (said by the worker {worker})") from error


def _carried_out(parcel: Parcel, worker: str) -> Delivery:
    with DataFolder(Path(parcel.folder)) as files:
        if _opened(parcel, files):
            records = tuple(task.carry_out(files.put) for task in parcel.tasks)
            return Delivery(worker, records, None)
    contents: list[bytes] = []
    records = tuple(task.carry_out(lambda *piece: contents.append(bytes(piece[2]))) for task in parcel.tasks)
    return Delivery(worker, records, tuple(contents))


def _opened(parcel: Parcel, files: DataFolder) -> bool:
    """Open the data files of a parcel and tell whether they are those of its run.

    A worker that was cut off from its run may come this far when the next one writes to the same names. That one
    changes the token before it creates a file, so what is open when the token is read is never a file of the next.
    """
    try:
        for name in {place.file for task in parcel.tasks for places in task.places.values() for place in places}:
            files.open(name)
        return Path(parcel.token_file).read_text(encoding="utf-8") == parcel.token
    except OSError:
        return False


@cache
def build() -> str:
    """Return the code that runs here."""
    return build_name()


@cache
def _one_blas_thread() -> object:
    """Let BLAS use one thread from now on: parcels have threads already, and sums must not depend on their number."""
    return threadpool_limits(1, user_api="blas")
