"""Where a model's bytes lie: one part for each weight, by layer and role, read from its inspection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Part", "SizeMap", "by_role", "size_map"]


@dataclass(frozen=True)
class Part:
    """One weight, or what is left of the file."""

    layer: int | None
    role: str
    """As in `graph.meaning.roles`; "table + head" where one weight is both, "other" for norms and biases."""
    bits: int
    """Of each weight as it is stored, without its scales."""
    count: int
    """Bytes, scales and zero points included."""


@dataclass(frozen=True)
class SizeMap:
    """The parts of one model."""

    name: str
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return sum(part.count for part in self.parts)


def size_map(name: str, inspection: Mapping[str, Any]) -> SizeMap:
    """Return the parts of one file, given the JSON form of its inspection, in the order of the graph."""
    tied = inspection["tied"]["state"] == "tied"
    parts = [] if tied else [_part(table, None, "embedding") for table in inspection["tables"]]
    for projection in inspection["projections"]:
        role = projection["role"] or "?"
        parts.append(_part(projection, projection["layer"], "table + head" if tied and role == "lm_head" else role))
    rest = int(inspection["size"]["weight_bytes"]) - sum(part.count for part in parts)
    if rest > 0:
        widest = max((part.bits for part in parts if part.bits > 8), default=32)
        parts.append(Part(None, "other", widest, rest))
    return SizeMap(name, tuple(parts))


def by_role(maps: Sequence[SizeMap]) -> list[dict[str, Any]]:
    """Return the bytes of each model by role and bits, in the order of the first model's roles."""
    rows: dict[tuple[str, str, int], int] = {}
    for each in maps:
        for part in each.parts:
            key = (each.name, part.role, part.bits)
            rows[key] = rows.get(key, 0) + part.count
    return [{"model": model, "role": role, "bits": bits, "bytes": count} for (model, role, bits), count in rows.items()]


def _part(weight: Mapping[str, Any], layer: int | None, role: str) -> Part:
    return Part(layer, role, int(weight["bits"]), int(weight["bytes"]))
