"""What a run did: each pass's Changes and Skips, and the bytes before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Change:
    """One rewrite that was made."""

    where: str
    """Name of the node or the weight that was rewritten."""
    what: str
    """What was done, as a short clause."""
    bytes_before: int = 0
    """Bytes of weights that this place needed before; 0 where the rewrite moves no weight."""
    bytes_after: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    """Figures and settings, as JSON values."""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """One candidate that was left alone, and why."""

    where: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PassReport:
    """What one pass of a recipe did to one file."""

    name: str
    file: str
    """Name of the model file inside its folder."""
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Size:
    """Bytes of one model: unique weight bytes as stored, and bits for each parameter."""

    weight_bytes: int
    """Unique bytes of all initializers, as they lie in the file."""
    file_bytes: int
    """Bytes of the ONNX file and its data files on disk."""
    parameters: int
    """Unique weight elements: a tied table counts once, scales and zero points do not count."""
    bits_per_weight: float
    """8 * weight_bytes / parameters, both over quantized and float weights."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run did; written to tailor-report.json and printed by `--json`."""

    version: str
    recipe: str
    target: str
    model: str
    out: str | None
    """The folder written; None for a dry run."""
    before: Size
    after: Size
    passes: tuple[PassReport, ...]
    files: tuple[str, ...]
    """Names of the files written, relative to `out`."""
    seconds: float
    recipe_text: str = ""
    """The recipe as it was read, without what `--set` changed."""
    settings: tuple[str, ...] = ()
    """What `--set` changed, each as PASS.KEY=VALUE."""
    verified: tuple[Mapping[str, Any], ...] = ()
    """For each ONNX file, what `run --verify` measured, as `verify --json` has it."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)
