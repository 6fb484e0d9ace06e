"""Gather what a page shows: inspections, receipts and recipes beside what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_tailor import pipeline
from onnx_tailor.console.comparison import short_names
from onnx_tailor.console.measuring import Measured
from onnx_tailor.report import REPORT, Report
from onnx_tailor.reporting.page import Subject, check_path, passes_of, write_page

__all__ = ["build_page", "check_path", "page_writer"]


def build_page(
    path: Path, reference: Path, files: Sequence[Path], measured: Sequence[Measured], report: Report | None = None
) -> None:
    """Write the page about the candidates `files` of one reference to `path`.

    `report` tells how they were made; without it the tailor-report.json beside each is read, where there is one.

    Raises:
        ModelError: a file cannot be read.
        OSError: the page cannot be written.

    """
    names = short_names([each.comparison.candidate for each in measured])
    subjects = []
    for name, file, each in zip(names, files, measured, strict=True):
        made: Mapping[str, Any] = report.to_json() if report is not None else _report_beside(file)
        subjects.append(
            Subject(
                name=name if len(files) > 1 else "candidate",
                measured=each,
                inspection=_inspection(file),
                passes=passes_of(made, file.name),
                recipe=_recipe(made),
            )
        )
    write_page(path, _inspection(reference), subjects)


def page_writer(path: Path) -> Callable[[Path, Path, Measured, Report], None]:
    """Return what `run --verify` calls with each pair of files, to write its page to `path`.

    Raises:
        UsageError: the page cannot be written there.

    """
    check_path(path)

    def write(reference: Path, candidate: Path, measured: Measured, report: Report) -> None:
        several = len({done.file for done in report.passes}) > 1
        build_page(
            path.with_stem(f"{path.stem}-{candidate.stem}") if several else path,
            reference,
            [candidate],
            [measured],
            report,
        )

    return write


def _inspection(file: Path) -> Mapping[str, Any]:
    (found,) = pipeline.inspect(file).to_json()["files"]
    return found  # type: ignore[no-any-return]  # the JSON form has no type


def _report_beside(file: Path) -> Mapping[str, Any]:
    """Return the report of the run that made the file; an empty one where there is none that can be read."""
    try:
        found = json.loads((file.parent / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _recipe(report: Mapping[str, Any]) -> str:
    """Return the recipe's text, and below it what the command line changed."""
    text = str(report.get("recipe_text", "")).strip()
    return "\n".join([text, *(f"# --set {setting}" for setting in report.get("settings", ()))]).strip()
