"""The data files of a folder, written at any offset from any thread."""

from __future__ import annotations

import threading
from io import FileIO
from pathlib import Path


class DataFolder:
    """Writes into files that exist already. A context: its files close at the end."""

    def __init__(self, folder: Path) -> None:
        """Open nothing yet."""
        self._folder = folder
        self._local = threading.local()
        self._opened: list[FileIO] = []

    def __enter__(self) -> DataFolder:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all files."""
        for file in self._opened:
            file.close()

    def put(self, name: str, offset: int, content: memoryview) -> None:
        """Write `content` into the file `name` from `offset` on.

        Raises:
            OSError: the file is missing, or cannot be written.
        """
        file = self.open(name)
        file.seek(offset)
        while len(content):
            content = content[file.write(content) :]

    def open(self, name: str) -> FileIO:
        """Return this thread's own handle, whose position no other moves."""
        files: dict[str, FileIO] = self._local.__dict__.setdefault("files", {})
        if name not in files:
            files[name] = FileIO(self._folder / name, "r+")
            self._opened.append(files[name])
        return files[name]
