"""What each execution provider can run, as data: one TOML file a target, every rule with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class TableForm:
    """What decides whether a layout of a quantized table is computed rightly."""

    bits: int
    zero_points: bool
    even_blocks: bool
    """The number of blocks in a row is even."""
    whole_blocks: bool
    """K is a multiple of the block size."""


@dataclass(frozen=True)
class Target:
    """One execution provider."""

    name: str
    summary: str
    layouts: tuple[str, ...]
    """Layouts of a quantized table, best first."""
    wrong: tuple[Mapping[str, Any], ...]
    """Cases in which a layout is refused or computed wrongly there."""

    def objection(self, layout: str, form: TableForm) -> str | None:
        """Return why `layout` is not right for a table of this form, or None if it is right."""
        for case in self.wrong:
            conditions = {key: value for key, value in case.items() if key not in {"layouts", "bits", "why"}}
            if layout not in case["layouts"] or form.bits not in case.get("bits", (2, 4, 8)):
                continue
            if all(getattr(form, key) == value for key, value in conditions.items()):
                return str(case["why"])
        return None

    def layout(self, form: TableForm) -> str:
        """Return the best layout that is right for a table of this form."""
        return next(layout for layout in self.layouts if self.objection(layout, form) is None)


def _load() -> dict[str, Target]:
    targets = {}
    for file in sorted(resources.files(__name__).iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            data = tomllib.loads(file.read_text(encoding="utf-8"))
            name = file.name.removesuffix(".toml")
            targets[name] = Target(name, data["summary"], tuple(data["layouts"]), tuple(data["wrong"]))
    return targets


TARGETS: Mapping[str, Target] = _load()
"""The targets by name."""
DEFAULT = "cpu"
