"""An output folder in this machine's file system, replaced as a whole by renaming."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from onnx_tailor.errors import OutputError
from onnx_tailor.output.work import Work, work_path


@dataclass(frozen=True)
class LocalFolder:
    """The folder `path`, which may exist."""

    path: Path
    overwrite: bool = False
    """Whether what is in it may be replaced."""

    @property
    def work(self) -> Path:
        """The work folder, beside it."""
        return work_path(self.path)

    def exists(self) -> bool:
        """Whether it is there."""
        return self.path.exists()

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def recover(self, path: Path) -> None:
        """Put an output back that a run was replacing when it died."""
        old = path / "old"
        if old.exists():
            if not self.path.exists():
                old.rename(self.path)
            else:  # it died with the new one in place
                shutil.rmtree(old)

    def publish(self, work: Work) -> None:
        """Give the finished output its name.

        Raises:
            OutputError: something is in it that was not there when the run began.
            OSError: the file system does not let it be renamed; the old one is back in its place.
        """
        if not self.overwrite and self.path.exists() and any(self.path.iterdir()):
            raise OutputError(
                f"{self.path}: was not there when the run began, and is left as it is; move it away, and the same "
                "command with --resume goes on"
            )
        old = work.path / "old"
        if self.path.exists():
            self.path.rename(old)
        try:
            work.folder.rename(self.path)
        except OSError:
            if old.exists():
                old.rename(self.path)
            raise
        _sync(self.path.parent)


def _sync(folder: Path) -> None:
    """Let the renaming reach the disk, where the system knows folders as files."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
