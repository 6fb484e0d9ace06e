"""Hash a model's files from the moment its path is known, while the rest of the program is imported.

Imports nothing that takes time itself. Hashing does not need the interpreter, so it runs beside the imports.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from onnx_tailor.graph.file.places import onnx_files
from onnx_tailor.weights.digest import Hashing

__all__ = ["HeadStart"]

_SHARED = (".data", "_data")
"""How the name of a data file ends that several ONNX files of a folder share; others begin with an ONNX file's."""


class HeadStart:
    """Begins, on a thread of its own, with the files that a model most likely has.

    A context manager, whose end ends the thread and closes the files. What cannot be read is passed over: who loads
    the model says so.
    """

    def __init__(self, model: Path | None) -> None:
        """Prepare for the ONNX file `model`, or a folder of them; for None, to do nothing."""
        self._model = model
        self._begun: dict[Path, Hashing] = {}
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._hash, name="head start", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread, whether it is done or not."""
        for each in self.leave().values():
            each.close()

    def leave(self) -> dict[Path, Hashing]:
        """End the thread and return what it has begun, to be gone on with; the last one is most likely not finished."""
        self._left.set()
        self._thread.join()
        return self._begun

    def _hash(self) -> None:
        with suppress(OSError, _Left):
            for path in () if self._model is None else _likely(self._model):
                with suppress(OSError):
                    if path.is_file():  # opening a FIFO would wait for ever
                        self._begun[path] = Hashing(path)
                        self._begun[path].finish(self._go_on)
                self._go_on()

    def _go_on(self, _: int = 0) -> None:
        if self._left.is_set():
            raise _Left


class _Left(BaseException):
    """Somebody else goes on; no error."""


def _likely(model: Path) -> list[Path]:
    """Return the ONNX files that `model` names, and those beside them whose names are those of data files."""
    is_folder = model.is_dir()
    models = onnx_files(model) if is_folder else [model]
    starts = tuple(f"{file.name}{mark}" for file in models for mark in "._")
    ends = _SHARED if is_folder else ()
    beside = [file for folder in {each.parent for each in models} for file in sorted(folder.iterdir())]
    data = (file for file in beside if file.name.startswith(starts) or file.name.endswith(ends))
    return list(dict.fromkeys([*models, *data]))
