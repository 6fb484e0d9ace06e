"""Where a model is read from: this machine's files, or a store, whose small files are brought here for the time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_tailor.errors import ModelError, TailorError, innermost
from onnx_tailor.graph.file.places import onnx_files
from onnx_tailor.output.companions import is_companion
from onnx_tailor.remote import Place, Url
from onnx_tailor.weights.files import DataFile

if TYPE_CHECKING:
    from onnx_tailor.remote.file import RemoteFile


@dataclass(frozen=True)
class Source:
    """A model to read."""

    path: Path
    """The ONNX file, or a folder of them, on this machine."""
    open: Callable[[Path], DataFile] = DataFile.open
    """Opens a file of the model, which may be elsewhere."""


@contextmanager
def opened(model: Place) -> Iterator[Source]:
    """Give the source that `model` names. ONNX files and companions of a store are brought here; weights stay there.

    Raises:
        UsageError: there is no such store.
        ModelError: the store holds no such model, or does not let it be read.
    """
    if isinstance(model, Path):
        yield Source(model)
        return
    model.require_support()
    from onnx_tailor.remote.file import RemoteFile
    from onnx_tailor.remote.stores import file_system

    files, inside = file_system(model)
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-") as scratch:
        root = Path(scratch)
        try:
            single = files.isfile(inside)
            base = Url(model.text.rpartition("/")[0]) if single else model
            above = inside.rpartition("/")[0] if single else inside
            _bring(files, above, root, model.name if single else None)
        except Exception as error:  # every store's client raises its own
            raise ModelError(f"{model}: cannot be read ({innermost(error)})") from error

        def at(path: Path) -> RemoteFile:
            return RemoteFile.at(path, base / path.relative_to(root).as_posix())

        path = root / model.name if single else root
        if not single and not onnx_files(root):
            raise ModelError(f"{model}: there is no such file, and no folder with an .onnx file")
        try:
            yield Source(path, at)
        except TailorError as error:
            if scratch not in str(error):
                raise
            raise type(error)(str(error).replace(scratch, base.text)) from error


def _bring(files: Any, folder: str, root: Path, only: str | None) -> None:
    """Copy the ONNX files, or `only` one, and the companions of a folder and of its subfolders to `root`."""
    for found in files.find(folder, maxdepth=2):
        name = found[len(folder) :].lstrip("/")
        is_wanted = name == only or (only is None and name.endswith(".onnx"))
        if is_wanted or is_companion(name.rpartition("/")[2]):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(found, str(root / name))
