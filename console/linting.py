"""What `lint` found, as text: problems before notes, each with its cost and its mend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from onnx_tailor.console.lines import print_line
from onnx_tailor.units import size

if TYPE_CHECKING:
    from onnx_tailor.lint.finding import Finding
    from onnx_tailor.lint.rules import Lint

__all__ = ["show_lint"]

_NAMED = 3
"""Places that are named when several are alike."""


def show_lint(found: Lint) -> None:
    """Print the findings, those that are alike but for their place together."""
    console = Console()
    several = len({finding.file for finding in found.findings}) > 1
    kinds: dict[tuple[str, str, str, str | None], list[Finding]] = {}
    for finding in found.findings:
        mend = finding.mend.line if finding.mend else None
        kinds.setdefault((finding.level, finding.rule, finding.what, mend), []).append(finding)
    for (level, rule, what, mend), alike in kinds.items():
        cost = sum(finding.bytes for finding in alike)
        places = [f"{finding.file}: {finding.where}" if several else finding.where for finding in alike]
        named = ", ".join(places[:_NAMED]) + (f" and {len(places) - _NAMED} more" if len(places) > _NAMED else "")
        print_line(
            console, f"{level} {rule}: {named}{f' ({size(cost)})' if cost else ''}", "red" if level == "problem" else ""
        )
        print_line(console, f"  {what}")
        if mend is not None:
            print_line(console, f"  recipe: - {mend}", "dim")
    problems, notes = len(found.problems), len(found.findings) - len(found.problems)
    print_line(console, f"{_count(problems, 'problem')}, {_count(notes, 'note')} for the target {found.target}", "bold")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
