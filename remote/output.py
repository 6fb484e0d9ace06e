"""An output folder on an object store: made on this machine, and uploaded when it is whole.

A store has neither positional writes nor a renaming of folders. So the output is made in `.NAME.onnx-tailor` in the
current folder, and its report, which tells of all other files, is uploaded last.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_tailor.errors import OutputError, UsageError, innermost
from onnx_tailor.output.work import Work, work_path
from onnx_tailor.remote import Url
from onnx_tailor.remote.stores import file_system
from onnx_tailor.report import REPORT

_NOTE = "uploading"
"""The file in the work folder that names what is being uploaded."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of a store, in which nothing may be yet."""

    url: Url

    @property
    def work(self) -> Path:
        """The work folder on this machine."""
        return work_path(Path.cwd() / self.url.name)

    def exists(self) -> bool:
        """Answer no: it never replaces anything, so that there was no output before."""
        return False

    def __str__(self) -> str:
        """Return the address."""
        return str(self.url)

    def require_free(self) -> None:
        """Refuse a folder in which something is, but for what an upload of this run's own left.

        Raises:
            UsageError: something is there.
            OutputError: the store does not answer.
        """
        files, inside = file_system(self.url)
        try:
            found = set(files.find(inside)) if files.exists(inside) else set()
        except Exception as error:  # every store's client raises its own
            raise OutputError(f"{self.url}: the store does not answer ({innermost(error)})") from error
        if found - {f"{inside}/{name}" for name in self._left()}:
            raise UsageError(f"{self.url}: exists already, and a store cannot replace a folder at once; choose another")

    def recover(self, path: Path) -> None:
        """Remove what an upload that died has left."""
        self._remove(self._left())
        (path / _NOTE).unlink(missing_ok=True)
        self.require_free()

    def publish(self, work: Work) -> None:
        """Upload the finished output, its report last.

        Raises:
            OutputError: the store does not take it; what it took is removed again.
        """
        files, inside = file_system(self.url)
        names = sorted(file.relative_to(work.folder).as_posix() for file in work.folder.rglob("*") if file.is_file())
        names.sort(key=lambda name: name == REPORT)
        note = work.path / _NOTE
        note.write_text(json.dumps({"url": self.url.text, "names": names}), encoding="utf-8")
        try:
            for name in names:
                _upload(files, work.folder / name, f"{inside}/{name}")
        except Exception as error:
            self._remove(names)
            note.unlink(missing_ok=True)
            raise OutputError(
                f"{self.url}: cannot be written ({innermost(error)}); the same command with --resume tries again"
            ) from error

    def _left(self) -> list[str]:
        """Return the names that an upload to here, which died, may have left."""
        try:
            found = json.loads((self.work / _NOTE).read_text(encoding="utf-8"))
            return [str(name) for name in found["names"]] if found["url"] == self.url.text else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _remove(self, names: Sequence[str]) -> None:
        files, inside = file_system(self.url)
        for name in names:
            with contextlib.suppress(Exception):  # not there; anything else is found by `require_free`
                files.rm_file(f"{inside}/{name}")


def _upload(files: Any, source: Path, to: str) -> None:
    """Copy a file, and see that all of it arrived.

    Raises:
        OSError: it did not.
    """
    files.makedirs(to.rpartition("/")[0], exist_ok=True)
    files.put_file(str(source), to)
    if (size := files.info(to)["size"]) != source.stat().st_size:
        raise OSError(f"{to} has {size} bytes there, {source.stat().st_size} here")
