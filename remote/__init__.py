"""Models and outputs on object stores, through fsspec: s3://, gs:// and whatever else it has a package for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from onnx_tailor.errors import UsageError

__all__ = ["Place", "Url", "place"]


@dataclass(frozen=True)
class Url:
    """A file or folder that is not in this machine's file system."""

    text: str
    """Without a slash at its end."""

    @property
    def name(self) -> str:
        """The last part."""
        return self.text.rpartition("/")[2]

    def __truediv__(self, name: str) -> Url:
        """Return what `name` is in this folder."""
        return Url(f"{self.text}/{name}")

    def __str__(self) -> str:
        """Return the text."""
        return self.text

    def require_support(self) -> None:
        """See that what reads addresses is installed.

        Raises:
            UsageError: it is not.
        """
        try:
            import fsspec  # noqa: F401  # it comes with an extra, and nothing else needs it
        except ModuleNotFoundError as error:
            raise UsageError(f"{self}: needs fsspec; install onnx-tailor[cluster]") from error


Place = Path | Url


def place(text: str) -> Place:
    """Return what a command line or a caller means by `text`."""
    return Url(text.rstrip("/")) if re.match(r"[a-z][a-z0-9+.-]+://", text) else Path(text)
