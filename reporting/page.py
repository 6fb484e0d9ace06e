"""The page: gathers what was measured into tables and charts, and writes one HTML file that needs no network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onnx_tailor import __version__
from onnx_tailor.console.findings import layer_errors
from onnx_tailor.console.measuring import Measured
from onnx_tailor.console.weights import decided_by, is_weight
from onnx_tailor.errors import UsageError
from onnx_tailor.report import Change, PassReport, Skip
from onnx_tailor.reporting import charts
from onnx_tailor.reporting.size_map import SizeMap, by_role, size_map
from onnx_tailor.units import change, figure, percent, size, span

__all__ = ["Subject", "check_path", "passes_of", "write_page"]

_NEEDED = ("jinja2", "vl_convert")
_BLAMED = 20
"""Weights in the chart of shares; the table below it has them all."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One candidate of the page."""

    name: str
    """Short, and different from the others'."""
    measured: Measured
    inspection: Mapping[str, Any]
    """The JSON form of its file's inspection."""
    passes: tuple[PassReport, ...] = ()
    """What the run that made it did, where that is known."""
    recipe: str = ""
    """The recipe's text, where it is known."""


def check_path(path: Path) -> None:
    """Find out before the work whether the page can be written.

    Raises:
        UsageError: the name does not end in .html, its folder is missing, or the extra `report` is not installed.

    """
    if path.suffix.lower() not in {".html", ".htm"}:
        raise UsageError(f"--report {path}: the report is an HTML page; give a name that ends in .html")
    if not path.parent.is_dir():
        raise UsageError(f"--report {path}: there is no folder {path.parent}")
    if any(find_spec(name) is None for name in _NEEDED):
        raise UsageError("--report needs the packages of the extra `report`; install it as in pip install '.[report]'")


def write_page(path: Path, reference: Mapping[str, Any], subjects: Sequence[Subject]) -> None:
    """Write the page about candidates of one reference, whose inspection is given; replaces a file of that name.

    Raises:
        OSError: the file cannot be written.

    """
    import jinja2

    loader = jinja2.FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"size": size, "figure": figure, "percent": percent}
    text = environment.get_template("page.html.j2").render(_content(reference, subjects))
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _content(reference: Mapping[str, Any], subjects: Sequence[Subject]) -> dict[str, Any]:
    """Return everything that the template shows."""
    first = subjects[0].measured.comparison
    maps = [size_map("original", reference), *(size_map(each.name, each.inspection) for each in subjects)]
    sizes = by_role(maps)
    scored = [each for each in subjects if each.measured.comparison.kl_mean is not None]
    return {
        "version": __version__,
        "colours": charts.BITS_COLOURS,
        "widths": charts.WIDTHS,
        "first": first,
        "subjects": subjects,
        "several": len(subjects) > 1,
        "before": maps[0].total,
        "after": {each.name: part.total for each, part in zip(subjects, maps[1:], strict=True)},
        "change": change,
        "sizes": sizes,
        "bytes_bars": charts.bytes_bars(sizes),
        "maps": [{"map": each, "chart": charts.treemap(each), "rows": _by_layer(each)} for each in maps],
        "errors": _errors(subjects),
        "kl_against_bytes": _kl_against_bytes(scored, maps) if len(scored) > 1 else None,
        "blames": {each.name: _blame(each) for each in subjects if each.measured.blame is not None},
        "weights": {each.name: _weights(each.passes) for each in subjects if each.passes},
        "recipes": {each.name: each.recipe for each in subjects if each.recipe},
    }


def _by_layer(sizes: SizeMap) -> list[dict[str, Any]]:
    """Return the parts, those of one role, size and bits joined into one row."""
    rows: dict[tuple[str, int, int], list[int | None]] = {}
    for part in sizes.parts:
        rows.setdefault((part.role, part.bits, part.count), []).append(part.layer)
    return [
        {"role": role, "bits": bits, "each": count, "layers": _layers(layers), "bytes": count * len(layers)}
        for (role, bits, count), layers in rows.items()
    ]


def _layers(layers: Sequence[int | None]) -> str:
    return span([layer for layer in layers if layer is not None])


def _errors(subjects: Sequence[Subject]) -> dict[str, Any] | None:
    """Return the chart and the rows of the error by layer; None where nothing was traced."""
    rows = [
        {"candidate": each.name, "place": _short(place), "percent": 100 * end}
        | {"largest": 100 * worst.relative_error, "at": worst.label}
        for each in subjects
        if each.measured.trace is not None and each.measured.trace.matched_by == "meaning"
        for place, end, worst, _ in layer_errors(each.measured.trace.points)
    ]
    traces = {each.name: each.measured.trace for each in subjects if each.measured.trace is not None}
    return {"chart": charts.error_lines(rows), "rows": rows, "traces": traces} if rows else None


def _short(place: str) -> str:
    """Return a place as it stands below an axis."""
    return {"embedding": "in", "lm_head": "out"}.get(place, place)


def _kl_against_bytes(subjects: Sequence[Subject], maps: Sequence[SizeMap]) -> dict[str, Any]:
    totals = {each.name: each.total for each in maps}
    rows = [
        {"candidate": each.name, "megabytes": totals[each.name] / 1e6, "kl": each.measured.comparison.kl_mean}
        for each in subjects
    ]
    return {"chart": charts.kl_against_bytes(rows), "rows": rows}


def _blame(subject: Subject) -> dict[str, Any]:
    blame = subject.measured.blame
    assert blame is not None
    rows = [{"weight": share.label, "kl": share.kl, "bits": share.bits or 32} for share in blame.shares[:_BLAMED]]
    return {"blame": blame, "chart": charts.blame_bars(rows) if rows else None}


def _weights(passes: Sequence[PassReport]) -> list[dict[str, Any]]:
    """Return what the passes did to each candidate weight, and what they left alone with the reason."""
    results: list[Change | Skip] = []
    for done in passes:
        results += [*done.changes, *done.skips]
    return [
        {
            "where": result.where,
            "details": result.details,
            "after": getattr(result, "bytes_after", None),
            "reason": getattr(result, "reason", ""),
            "by": decided_by(result.details),
        }
        for result in results
        if is_weight(result)
    ]


def passes_of(report: Mapping[str, Any], file: str) -> tuple[PassReport, ...]:
    """Return the passes that the JSON form of a report has for one ONNX file."""
    return tuple(
        PassReport(
            name=done["name"],
            file=done["file"],
            changes=tuple(Change(**each) for each in done["changes"]),
            skips=tuple(Skip(**each) for each in done["skips"]),
            seconds=done.get("seconds", 0.0),
        )
        for done in report.get("passes", ())
        if done["file"] == file
    )
