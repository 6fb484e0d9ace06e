"""What `bits: auto` is to reach: bits for each weight, a size on disk, or a divergence."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnx_tailor.errors import OptionError, UsageError
from onnx_tailor.units import parse_size

_BITS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*bpw\s*")


@dataclass(frozen=True)
class Goal:
    """One of the three; the others are None."""

    bits_per_weight: float | None = None
    """Mean bits of all weights, floats, scales and zero points included."""
    file_bytes: int | None = None
    """Bytes of the ONNX file and its data together."""
    kl: float | None = None
    """Nats a token."""

    def __str__(self) -> str:
        """Return it as a recipe says it."""
        if self.bits_per_weight is not None:
            return f"budget: {self.bits_per_weight:g} bpw"
        return f"size: {self.file_bytes} bytes" if self.file_bytes is not None else f"kl: {self.kl:g}"

    def weight_bytes(self, parameters: int, around: int) -> int | None:
        """Return the bytes that all weights may take; None where only the divergence is limited.

        `around` bytes of the file hold the graph.
        """
        if self.bits_per_weight is not None:
            return int(self.bits_per_weight * parameters / 8)
        return self.file_bytes - around if self.file_bytes is not None else None


def _bytes(text: str) -> int | None:
    """Return the bytes that a size with its unit says; None where it says none."""
    try:
        return parse_size(text) if text.strip()[-1:].isalpha() else None
    except UsageError:
        return None


def parse_goal(budget: str | None, size: str | None, kl: float | None) -> Goal | None:
    """Read the options; None where all are missing.

    Raises:
        OptionError: more than one is given, or one cannot be read.
    """
    given = [name for name, value in (("budget", budget), ("size", size), ("kl", kl)) if value is not None]
    if len(given) > 1:
        raise OptionError(f"`{given[0]}` and `{given[1]}` are two goals; give one", key=(given[1],))
    if budget is not None:
        found = _BITS.fullmatch(budget)
        if found is None:
            hint = "" if _bytes(budget) is None else f"; say `size: {budget}`"
            raise OptionError(f'budget {budget!r} is no bits per weight, as in "4.7 bpw"{hint}', key=("budget",))
        return Goal(bits_per_weight=float(found[1]))
    if size is not None:
        limit = _bytes(size)
        if limit is None:
            raise OptionError(f'size {size!r} is no size, as in "180 MB"', key=("size",))
        return Goal(file_bytes=limit)
    if kl is not None and not kl > 0:
        raise OptionError(f"kl {kl:g} is not above zero, and only the original has zero", key=("kl",))
    return Goal(kl=kl) if kl is not None else None
