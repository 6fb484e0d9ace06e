"""The work folder beside the output: what a run has written so far, until it is whole and takes the output's name.

.OUT.onnx-tailor/lock      who writes; held by the operating system
.OUT.onnx-tailor/new/      the output in the making
.OUT.onnx-tailor/journal   the finished tasks, for `--resume`
.OUT.onnx-tailor/old/      the output that was, for the moment in which it is replaced
.OUT.onnx-tailor/token     by which the workers of a cluster know the folder
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onnx_tailor.errors import OutputError, ResumeError, TailorError
from onnx_tailor.output.lock import Lock


@dataclass(frozen=True)
class Work:
    """A locked work folder."""

    path: Path

    @property
    def folder(self) -> Path:
        """The output in the making."""
        return self.path / "new"

    @property
    def journal(self) -> Path:
        """The journal; absent where there is nothing to go on with."""
        return self.path / "journal"

    @property
    def token(self) -> Path:
        """By it the workers of a cluster know the folder as theirs."""
        return self.path / "token"

    def clear(self) -> None:
        """Forget what an earlier run left."""
        self.token.unlink(missing_ok=True)  # first of all: its workers may live yet
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()


def work_path(out: Path) -> Path:
    """Return where the work folder of the output `out` is."""
    return out.parent / f".{out.name}.onnx-tailor"


class Folder(Protocol):
    """The output's final place."""

    @property
    def work(self) -> Path:
        """Where its work folder is, on this machine."""

    def exists(self) -> bool:
        """Whether there is an output, which would be replaced."""

    def recover(self, path: Path) -> None:
        """Undo what a run that died in `publish` has left, also in the work folder at `path`."""

    def publish(self, work: Work) -> None:
        """Let the finished output appear there."""


@contextmanager
def working(out: Folder) -> Iterator[Work]:
    """Give the work folder of `out`, whose content takes the output's name when the block ends well.

    When the block fails, `out` is as it was. What was written so far stays where a resumed run can use it, but not
    after an error of the model or the recipe, which would come again.

    Raises:
        OutputError: another run is writing to `out`, or the file system fails.
    """
    path = out.work
    made, lock = _entered(path, out)
    keep = False
    try:
        out.recover(path)
        work = Work(path)
        work.folder.mkdir(exist_ok=True)
        yield work
        out.publish(work)
    except (KeyboardInterrupt, OSError) as error:
        keep = work_is_useful(path)
        again = "; the same command with --resume goes on where it stopped" if keep else ""
        as_it_was = "is as it was" if out.exists() else "was not written"
        if isinstance(error, KeyboardInterrupt):
            raise type(error)(f"interrupted; {out} {as_it_was}{again}") from error
        where = f"{error.filename}: " if error.filename else ""
        raise OutputError(f"{where}{error.strerror or error}; {out} {as_it_was}{again}") from error
    except TailorError as error:  # any other would come again
        keep = isinstance(error, OutputError | ResumeError) and work_is_useful(path)
        raise
    except BaseException:
        keep = work_is_useful(path)
        raise
    finally:
        _leave(path, lock, keep=keep)
        if not out.exists():
            _remove_empty(made)


def _entered(path: Path, out: Folder) -> tuple[list[Path], Lock]:
    """Create the work folder and lock it; return the folders above that were missing as well."""
    missing = [each for each in path.parents if not each.exists()][::-1]
    try:
        for each in missing:
            each.mkdir(exist_ok=True)
        return missing, Lock(path / "lock", str(out))
    except OSError as error:
        _remove_empty(missing)
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    except OutputError:
        _remove_empty(missing)
        raise


def work_is_useful(path: Path) -> bool:
    """Whether a work folder holds something that a resumed run would go on with."""
    journal = path / "journal"
    return journal.exists() and journal.read_bytes().count(b"\n") > 1


def _leave(path: Path, lock: Lock, *, keep: bool) -> None:
    """Remove the work folder, the lock last, or only let go of the lock."""
    if not keep:
        for each in path.iterdir():
            if each.is_dir():
                shutil.rmtree(each, ignore_errors=True)
            elif each != lock.path:
                each.unlink(missing_ok=True)
    lock.release()
    try:
        path.rmdir()
    except OSError:  # it is kept, or the next run has begun in it
        return


def _remove_empty(folders: list[Path]) -> None:
    for each in reversed(folders):
        try:
            each.rmdir()
        except OSError:
            return
