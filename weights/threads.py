"""Carry tasks out on the threads of this process: the executor unless another is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from onnx_tailor.weights.data_folder import DataFolder
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.pool import workers
from onnx_tailor.weights.tasks import Destination, Done, Task


class Threads:
    """As many threads as this process may use processors, each reading, computing and writing."""

    def carry_out(self, tasks: Iterable[Task], to: Destination, done: Done) -> None:
        """Carry out `tasks`; memory use is a few tiles a thread, within the budget of `pool`.

        Raises:
            ModelError: a source file was cut off or replaced, or a weight cannot be computed.
            OSError: a file cannot be written.
        """
        failed = threading.Event()

        def one(task: Task) -> None:
            if not failed.is_set():
                done(task, task.carry_out(files.put))

        with DataFolder(to.folder) as files, ThreadPoolExecutor(workers()) as pool:
            try:
                pending: set[Future[None]] = set()
                for task in tasks:  # a bounded queue: a large model has many thousand tiles
                    pending.add(pool.submit(one, task))
                    if len(pending) > 4 * workers():
                        finished, pending = wait(pending, return_when="FIRST_COMPLETED")
                        _raise_first(finished)
                finished, _ = wait(pending, return_when=FIRST_EXCEPTION)
                _raise_first(finished)
            except BaseException:
                failed.set()
                raise

    @property
    def hashers(self) -> int:
        """One: more would take processors from the weights, which are read at the same time."""
        return 1

    def blake3(self, file: DataFile, advance: Callable[[int], None]) -> str:
        """Return the BLAKE3 of an input in hexadecimal.

        Raises:
            ModelError: the file cannot be read.
            OSError: the same.
        """
        return file.blake3(advance)


def _raise_first(finished: set[Future[None]]) -> None:
    for future in finished:
        future.result()
