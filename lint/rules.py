"""The table of rules, functions from a `Subject` to findings, and what runs them over a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.file.places import model_files
from onnx_tailor.lint import (
    accuracy,
    bindings,
    broken_tables,
    data_files,
    duplicates,
    folded_weights,
    kernels,
    qdq,
    table_layouts,
    vocabulary,
)
from onnx_tailor.lint.finding import Finding, Mend, Rule, Subject
from onnx_tailor.targets import TARGETS

__all__ = ["RULES", "Finding", "Lint", "Mend", "lint"]

RULES: tuple[Rule, ...] = (
    broken_tables.faults,
    broken_tables.unclear,
    table_layouts.wrong_layout,
    table_layouts.device_copies,
    kernels.refused,
    kernels.padded_columns,
    kernels.bfloat16,
    folded_weights.second_copies,
    vocabulary.untied,
    vocabulary.own_codes,
    duplicates.equal_weights,
    bindings.too_large,
    data_files.unaligned,
    accuracy.slow_eight_bits,
    accuracy.float_points,
    accuracy.unpacked_whole,
    qdq.dequantized_whole,
    kernels.releases,
)
"""The rules that look at one file."""


@dataclass(frozen=True)
class Lint:
    """All findings on a model, or a folder of them, for one target."""

    model: Path
    target: str
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that are more than notes."""
        return tuple(finding for finding in self.findings if finding.level == "problem")

    def to_json(self) -> dict[str, Any]:
        """Return the findings as JSON values."""
        return {
            "model": str(self.model),
            "target": self.target,
            "problems": len(self.problems),
            "findings": [finding.to_json() for finding in self.findings],
        }


def lint(model: Path, target: str) -> Lint:
    """Judge the ONNX file `model`, or every one of a folder, by the rules of a target.

    Weights are read where copies have to be compared, in tiles; nothing is run and nothing is changed.

    Raises:
        ModelError: a file cannot be read.
    """
    subjects = [Subject(load(file), TARGETS[target]) for file in model_files(model)]
    findings = [finding for subject in subjects for rule in RULES for finding in rule(subject)]
    return Lint(model, target, tuple(_ordered([*findings, *data_files.orphaned(subjects)])))


def _ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Put problems before notes and leave the rules' order otherwise."""
    return sorted(findings, key=lambda finding: finding.level == "note")
