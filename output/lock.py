"""One run at a time into one folder: a lock of the operating system, which ends with the process that holds it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import IO

from onnx_tailor.errors import OutputError

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[str]) -> bool:
        """Take the lock, unless another process has it."""
        try:
            file.seek(1 << 30)  # beyond the text, which the other process may read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(file: IO[str]) -> bool:
        """Take the lock, unless another process has it."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


class Lock:
    """The lock in a work folder. The file tells who holds it; whether that one lives, the system knows."""

    def __init__(self, path: Path, holder: str) -> None:
        """Take the lock at `path` and write `holder`, who wants it for what, into it.

        Raises:
            OutputError: another run that lives holds it.
        """
        self.path = path
        while True:
            path.parent.mkdir(exist_ok=True)
            try:
                self._file = path.open("a+", encoding="utf-8")
            except FileNotFoundError:  # the run before removed the folder just now
                continue
            if not _try_lock(self._file):
                said = _who(self._file)
                self._file.close()
                raise OutputError(f"{holder}: {said} is writing there; wait for its end, or choose another folder")
            # The run before may have removed the file while this one waited to lock it.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(self._file.fileno())):
                break
            self._file.close()
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
        self._file.flush()

    def release(self) -> None:
        """Remove the file and let the lock go."""
        if sys.platform == "win32":
            self._file.close()
            self.path.unlink(missing_ok=True)
        else:
            self.path.unlink(missing_ok=True)
            self._file.close()


def _who(file: IO[str]) -> str:
    """Return who holds the lock, as they wrote it themselves."""
    try:
        file.seek(0)
        found = json.loads(file.read())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
        return f"process {found['pid']} on {found['host']}, since {since},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
