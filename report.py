"""What a run did: each pass's Changes and Skips, and the bytes before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPORT = "tailor-report.json"
"""Name of the report in the folder that a run writes."""


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
class InputDigest:
    """A file that was read, by its content."""

    name: str
    bytes: int
    blake3: str
    """In hexadecimal, as `b3sum` prints it."""


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """A file that was written, by its content."""

    name: str
    """Relative to its folder."""
    bytes: int
    sha256: str
    """In hexadecimal, as `sha256sum` prints it."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run would need; of a dry run."""

    file_bytes: Mapping[str, int]
    """Of each model and data file, exact but for the receipt that a run adds to the model's metadata."""
    disk_bytes: int
    """On the disk of the output, while it is written."""
    memory_bytes: int
    """Expected peak of the process's resident memory, on the large side: compiling kernels included where that is to be
    done, calibrating not where the dry run did not."""
    read_bytes: int
    """Of weights, to be read and worked."""
    seconds: float | None
    """Expected time of writing and hashing on this machine, from a short measurement; None where it was not made."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run did; printed by `--json` and, but for times and places, written to tailor-report.json."""

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

    inputs: tuple[InputDigest, ...] = ()
    """The files that were read: models, data files and companions."""
    outputs: tuple[FileDigest, ...] = ()
    """The files that were written, all but the report itself."""
    forecast: Forecast | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        plain = _finite(asdict(self))
        assert isinstance(plain, dict)
        return plain

    def to_record(self) -> dict[str, Any]:
        """Return what is written beside the model: the same for the same work, whenever and wherever it ran."""
        record = self.to_json()
        for key in ("out", "seconds", "forecast"):
            del record[key]
        record["model"] = Path(self.model).name
        for done in record["passes"]:
            del done["seconds"]
        return record


def _finite(value: Any) -> Any:
    """Return the value with each infinity or NaN, which JSON has no number for, as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
