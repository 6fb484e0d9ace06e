"""Passes of other packages, which announce them as entry points of the group `onnx_tailor.passes`.

Only what is installed is found: neither a recipe nor a model can name code to run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from onnx_tailor.passes.base import Pass

GROUP = "onnx_tailor.passes"


def discover(own: Mapping[str, type[Pass]]) -> tuple[dict[str, type[Pass]], dict[str, str]]:
    """Return the passes of other packages, and the reasons why some entry points yield none, both by name."""
    found: dict[str, type[Pass]] = {}
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        result = _load(point, own.keys() | found.keys())
        if isinstance(result, str):
            package = point.dist.name if point.dist else point.value
            broken[point.name] = f"{point.name!r}, a pass of the package {package}, {result}"
        else:
            found[point.name] = result
    return found, broken


def _load(point: EntryPoint, taken: set[str]) -> type[Pass] | str:
    try:
        loaded = point.load()
    except Exception as error:  # another package's import may raise anything
        return f"cannot be imported: {type(error).__name__}: {error}"
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        return f"is no Pass ({point.value})"
    if loaded.name != point.name:
        return f"calls itself {loaded.name!r}"
    if point.name in taken:
        return "has a name that is taken"
    return loaded
