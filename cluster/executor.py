"""Carry tasks out on the workers of a Dask cluster, as https://distributed.dask.org describes it."""

# mypy: disable-error-code="no-untyped-call"
# distributed has types for a part of itself.

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import distributed

from onnx_tailor.cluster.parcels import Delivery, Parcel, parcels
from onnx_tailor.cluster.worker import deliver
from onnx_tailor.errors import OutputError, TailorError
from onnx_tailor.weights.data_folder import DataFolder
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.tasks import Destination, Done, Task
from onnx_tailor.weights.threads import Threads

Future: TypeAlias = "distributed.Future[Delivery]"

CONNECT = 20.0
"""Seconds in which a scheduler must answer."""
PATIENCE = 60.0
"""Seconds for which a cluster may be without any worker."""
_GLANCE = 2.0
"""Seconds after which a quiet cluster is looked at."""
_MOST_HASHERS = 64
_LOST = "the connection to the scheduler is lost"
_AHEAD = 3
"""Parcels for each thread of the workers that are under way at once: one in work, the others waiting for it."""


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Give the executor that hands tasks to the scheduler at `address`, HOST:PORT.

    Raises:
        OutputError: no scheduler answers there.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it says of lost workers is no error of a run
    try:
        client = distributed.Client(f"tcp://{address}", timeout=CONNECT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise OutputError(
            f"dask://{address}: no scheduler answers there; start one with `dask scheduler`, and workers with "
            f"`dask worker {address}`"
        ) from error
    with client, client.as_current():
        yield Cluster(client, address)


class Cluster:
    """The workers of a scheduler. A parcel whose worker dies is handed to another."""

    def __init__(self, client: distributed.Client, address: str) -> None:
        """Take a client that is connected."""
        self._client = client
        self._address = address

    def carry_out(self, tasks: Iterable[Task], to: Destination, done: Done) -> None:
        """Carry out `tasks`; what a worker has written is read back here before it counts.

        Raises:
            ModelError: a source file is not on a worker, was cut off or replaced, or a weight cannot be computed.
            OutputError: the cluster is gone, or a worker's bytes did not arrive.
            OSError: a file cannot be written.
        """
        token = secrets.token_hex(16)
        to.token.write_text(token, encoding="utf-8")
        kept: list[Task] = []
        todo = parcels(tasks, to, token, kept.append)
        pending: dict[Future, Parcel] = {}
        try:
            with DataFolder(to.folder) as files:
                while self._fill(pending, todo):
                    for future in self._finished(pending):
                        parcel = pending.pop(future)
                        _accept(self._result(future), parcel, files, done)
            Threads().carry_out(kept, to, done)
        finally:
            to.token.unlink(missing_ok=True)
            if pending:
                self._client.cancel(list(pending), force=True)

    @property
    def hashers(self) -> int:
        """As many as the workers have threads now."""
        return max(1, min(self._threads(), _MOST_HASHERS))

    def blake3(self, file: DataFile, advance: Callable[[int], None]) -> str:
        """Return the BLAKE3 of an input in hexadecimal, which a worker computes or, if it fails, this process.

        Raises:
            ModelError: the file was replaced, or cannot be read.
            OSError: the file cannot be read.
        """
        future = self._client.submit(_blake3, file, pure=False)
        try:
            while True:
                advance(0)
                try:
                    result: str = future.result(timeout=_GLANCE)
                except TimeoutError:
                    continue
                return result
        except (TailorError, OSError, distributed.KilledWorker, distributed.CancelledError):
            return file.blake3(advance)
        finally:
            future.cancel()

    def _fill(self, pending: dict[Future, Parcel], todo: Iterator[Parcel]) -> bool:
        """Hand out parcels until every worker has enough; return whether any is under way."""
        threads = self._threads()
        while len(pending) < max(1, threads) * _AHEAD and (parcel := next(todo, None)) is not None:
            pending[self._client.submit(_deliver, parcel, pure=False)] = parcel
        return bool(pending)

    def _finished(self, pending: dict[Future, Parcel]) -> list[Future]:
        """Wait until a parcel is finished.

        Raises:
            OutputError: there was no worker, or no scheduler, for too long.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return list(distributed.wait(list(pending), timeout=_GLANCE, return_when="FIRST_COMPLETED").done)
            except TimeoutError:
                pass
            except distributed.CancelledError as error:
                raise self._gone(_LOST) from error
            if self._threads():
                deadline = time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                raise self._gone(f"there has been no worker for {PATIENCE:.0f} s")

    def _result(self, future: Future) -> Delivery:
        try:
            result: Delivery = future.result()
        except distributed.KilledWorker as error:
            raise self._gone("workers died one after the other at the same work") from error
        except distributed.CancelledError as error:
            raise self._gone(_LOST) from error
        except ImportError as error:
            raise self._gone(
                f"a worker cannot load onnx-tailor ({error}); install onnx-tailor[cluster] there"
            ) from error
        return result

    def _threads(self) -> int:
        """Return how many threads the workers have.

        Raises:
            OutputError: the scheduler does not answer.
        """
        if self._client.status != "running":
            raise self._gone(_LOST)
        try:
            return sum(self._client.nthreads().values())
        except (OSError, TimeoutError) as error:
            raise self._gone(_LOST) from error

    def _gone(self, what: str) -> OutputError:
        advice = "the same command with --resume goes on where it stopped"
        return OutputError(f"dask://{self._address}: {what}; {advice}")


def _deliver(parcel: Parcel) -> Delivery:
    """Run on a worker, where its name is known."""
    worker: Any = distributed.get_worker()
    return deliver(parcel, worker.address)


def _blake3(file: DataFile) -> str:
    """Run on a worker."""
    file.require_unchanged()
    return file.blake3()


def _accept(delivery: Delivery, parcel: Parcel, files: DataFolder, done: Done) -> None:
    """Note what a worker has done, when its bytes are here."""
    contents = iter(delivery.contents or ())
    for task, record in zip(parcel.tasks, delivery.records, strict=True):
        if delivery.contents is None:
            if not record.matches(Path(parcel.folder)):
                raise OutputError(
                    f"worker {delivery.worker} has written to {parcel.folder}, but other bytes arrived there; "
                    "see whether that file system keeps what several machines write to one file"
                )
        else:
            for name, offset, _, _ in record.pieces:
                files.put(name, offset, memoryview(next(contents)))
        task.recall(record)
        done(task, record)
