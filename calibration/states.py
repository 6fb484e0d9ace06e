"""The values between two segments of a graph, window by window, in files: memory does not grow with the text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnx_tailor.errors import ModelError

__all__ = ["States"]

Array = npt.NDArray[Any]


class _Kept(NamedTuple):
    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class States:
    """Values by name, window, and whether the weights before them are quantized."""

    def __init__(self, folder: Path) -> None:
        """Keep the values in `folder`, which is empty."""
        self._folder = folder
        self._numbers = itertools.count()
        self._kept: dict[tuple[str, int, bool], _Kept] = {}

    def put(self, name: str, window: int, value: Array, *, quantized: Iterable[bool]) -> None:
        """Keep a value, of the model as it is, of the quantized one, or of both where they are the same.

        Raises:
            ModelError: there is no room for it.
        """
        kept = _Kept(self._folder / str(next(self._numbers)), value.dtype, value.shape)
        try:
            np.ascontiguousarray(value).reshape(-1).view(np.uint8).tofile(kept.path)
        except OSError as error:
            where = self._folder.parent.parent
            raise ModelError(f"values between its segments cannot be kept in {where}: {error.strerror}") from error
        for each in quantized:
            self._kept[name, window, each] = kept

    def get(self, name: str, window: int, *, quantized: bool) -> Array:
        """Return a value that was kept."""
        kept = self._kept[name, window, quantized]
        return np.fromfile(kept.path, np.uint8).view(kept.dtype).reshape(kept.shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return a value's type."""
        return self._kept[name, 0, False].dtype

    def same(self, names: Iterable[str]) -> bool:
        """Whether these values are the same in both models."""
        return all(self._kept[name, 0, False] is self._kept[name, 0, True] for name in names)

    def forget_all_but(self, names: Iterable[str]) -> None:
        """Remove the other values."""
        wanted = set(names)
        for key in [key for key in self._kept if key[0] not in wanted]:
            self._kept.pop(key).path.unlink(missing_ok=True)
