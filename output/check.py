"""Prove that a folder still holds what its report says."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from onnx_tailor.errors import OutputError
from onnx_tailor.progress import Progress, Silent
from onnx_tailor.report import REPORT, FileDigest
from onnx_tailor.weights.digest import sha256_of
from onnx_tailor.weights.pool import workers


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What became of the files that a report names."""

    folder: str
    equal: tuple[str, ...]
    """Files whose bytes are those that were written."""
    missing: tuple[str, ...]
    different: tuple[str, ...]
    unknown: tuple[str, ...]
    """Files that the report does not name; whoever put them there answers for them."""

    @property
    def whole(self) -> bool:
        """Whether every file that was written is there unchanged."""
        return not (self.missing or self.different)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**self.__dict__, "whole": self.whole}


def check(folder: Path, progress: Progress | None = None) -> Checked:
    """Compare every file of `folder` with the SHA-256 in its tailor-report.json.

    Raises:
        OutputError: there is no such report, or it cannot be read.
    """
    watch = progress or Silent()
    expected = _expected(folder / REPORT)
    watch.start("checking", sum(file.bytes for file in expected))
    with ThreadPoolExecutor(workers()) as pool:
        states = list(pool.map(lambda file: _state(folder, file, watch), expected))
    watch.finish()
    names: dict[str, list[str]] = {"equal": [], "missing": [], "different": []}
    for file, state in zip(expected, states, strict=True):
        names[state].append(file.name)
    known = {file.name for file in expected} | {REPORT}
    there = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    unknown = sorted(name for name in there if name not in known)
    return Checked(
        folder=str(folder),
        equal=tuple(names["equal"]),
        missing=tuple(names["missing"]),
        different=tuple(names["different"]),
        unknown=tuple(unknown),
    )


def _state(folder: Path, expected: FileDigest, progress: Progress) -> str:
    path = folder / expected.name
    if not path.is_file():
        return "missing"
    if path.stat().st_size != expected.bytes:
        return "different"
    return "equal" if sha256_of(path, progress.advance) == expected.sha256 else "different"


def _expected(report: Path) -> list[FileDigest]:
    if not report.is_file():
        raise OutputError(f"{report}: there is no such report; `check` takes a folder that `run` wrote")
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        files = [FileDigest(name=str(f["name"]), bytes=int(f["bytes"]), sha256=f["sha256"]) for f in found["outputs"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(f"{report}: cannot be read as a report with the SHA-256 of its files ({error!r})") from error
    paths = [PureWindowsPath(file.name) for file in files]  # understands both separators and drive letters
    if any(not path.parts or path.drive or path.root or ".." in path.parts for path in paths):
        raise OutputError(f"{report}: names files outside its folder; it was not written by `run`")
    return files
