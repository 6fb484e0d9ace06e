"""The recipes that come with onnx-tailor, runnable by name."""

from __future__ import annotations

from pathlib import Path

__all__ = ["names", "path", "summary"]

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Return the recipes' names in alphabetical order."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))


def path(name: str) -> Path:
    """Return the file of the recipe `name`, which must be one of `names()`."""
    return _FOLDER / f"{name}.yaml"


def summary(name: str) -> str:
    """Return what the recipe does: the comment on its first line."""
    with path(name).open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
