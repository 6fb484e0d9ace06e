"""The recipe that mends what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx_tailor.lint.finding import Finding, Mend
from onnx_tailor.lint.rules import Lint

_ORDER = ("tie-embeddings", "quantize", "accuracy-level", "reshape-dim")
"""As in the shipped recipes: a table is tied before it is quantized, and laid out last."""


def recipe(found: Lint) -> str | None:
    """Return a recipe in YAML with a line for each mend; None where nothing that was found has one."""
    mends: dict[str, tuple[dict[str, Any], list[Finding]]] = {}
    for finding in found.findings:
        if finding.mend is not None:
            options, findings = mends.setdefault(finding.mend.name, ({}, []))
            findings.append(finding)
            _merge(options, finding.mend.options)
    if not mends:
        return None
    if "tie-embeddings" in mends or "quantize" in mends:
        mends.setdefault("reshape-dim", ({}, []))
    lines = [f"# Mends what `onnx-tailor lint --target {found.target}` found in {found.model.name}."]
    lines += ["recipe: 1", f"target: {found.target}", "passes:"]
    for name in sorted(mends, key=_ORDER.index):
        options, findings = mends[name]
        rules = ", ".join(dict.fromkeys(f"{finding.rule} ({finding.where})" for finding in findings[:3]))
        comment = f"  # {rules}" if rules else ""
        lines.append(f"  - {Mend(name, options).line}{comment}".replace("\n", " "))
    return "\n".join(lines) + "\n"


def _merge(options: dict[str, Any], others: Mapping[str, Any]) -> None:
    """Keep the fewer bits of two mends by quantization: the larger weight needs them."""
    for key, value in others.items():
        options[key] = min(options.get(key, value), value) if key == "bits" else value
