"""What somebody may have meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def nearest(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean x?" for the known spelling nearest to `word`, or "" where none is near."""
    found = get_close_matches(word.lower(), known, n=1, cutoff=0.55)
    return f"; did you mean {found[0]}?" if found else ""
