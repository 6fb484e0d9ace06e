"""Blocks of remote files on this machine's disk, for reads that are too short to ask a store for."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

from onnx_tailor.remote import Url

BLOCK = 4 << 20
"""Bytes that are fetched at once."""
LIMIT = 8 << 30
"""Bytes that a process keeps at most, or half of what its disk has free: a weight read across its rows should fit."""


class Spool:
    """The blocks used last, in one file without a name, which ends with the process whatever ends that."""

    def __init__(self, slots: int) -> None:
        """Begin with no block."""
        self._free = list(reversed(range(max(1, slots))))
        self._file = tempfile.TemporaryFile(prefix="onnx-tailor-", buffering=0)  # noqa: SIM115  # until the end
        self._lock = threading.Lock()
        self._places: OrderedDict[tuple[Url, int], int] = OrderedDict()

    def read_into(
        self, url: Url, size: int, offset: int, buffer: memoryview, fetch: Callable[[int, int], bytes]
    ) -> None:
        """Fill `buffer` with the bytes from `offset` on of a file of `size` bytes, whose ranges `fetch` returns."""
        done = 0
        while done < len(buffer):
            number, start = divmod(offset + done, BLOCK)
            part = buffer[done : done + BLOCK - start]
            if not self._read((url, number), start, part):
                content = fetch(number * BLOCK, min(size, (number + 1) * BLOCK))
                self._keep((url, number), content)
                part[:] = content[start : start + len(part)]
            done += len(part)

    def _read(self, key: tuple[Url, int], start: int, part: memoryview) -> bool:
        with self._lock:
            slot = self._places.get(key)
            if slot is None:
                return False
            self._places.move_to_end(key)
            self._file.seek(slot * BLOCK + start)
            count = self._file.readinto(part)
        if count != len(part):
            raise OSError("the temporary file was cut off")
        return True

    def _keep(self, key: tuple[Url, int], content: bytes) -> None:
        with self._lock:
            if key in self._places:  # another thread was faster
                return
            slot = self._free.pop() if self._free else self._places.popitem(last=False)[1]
            try:
                self._file.seek(slot * BLOCK)
                left = memoryview(content)
                while left:
                    left = left[self._file.write(left) :]
            except BaseException:
                self._free.append(slot)
                raise
            self._places[key] = slot


@cache
def spool() -> Spool:
    """Return that of this process."""
    return Spool(min(LIMIT, shutil.disk_usage(tempfile.gettempdir()).free // 2) // BLOCK)
