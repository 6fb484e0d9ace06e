"""The page docs/exports.md, made from the results of matrix.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LEFT = ("stack", "no weight", "bytes quantized", "a router")
"""What is in the reasons why a projection stays as it is."""
_HEAD = """# Exports

Which exports of which exporters were tied and quantized, and what was checked. Written by
`tests/exporters/matrix.py`; tests/exporters/README.md says how to make the exports. Tiny models, random weights.

- **tie**: `tied` where two copies became one or a Transpose of the weight went, `already` where the head read the
  table as it lies; then the largest difference of any output from the input model's, relative to its largest
  value, over a prefill and, where the model has a cache, a decoded token.
- **4 bits**, **8 bits**: tie and `k_quant`, blocks of 32; projections quantized of all there are, and the mean KL
  divergence of the next token's distribution. A head and a table that share are the same bytes, and compared.
- bfloat16: the CPU provider of ONNX Runtime lacks many of its kernels, so most inputs do not load there. Those ran,
  before and after, with every bfloat16 widened to float32, which is exact for weights: `as float32`.
- genai in fp16, on the CPU: the builder declares the length of repeated keys as `sequence_length`, so ONNX Runtime
  fails to reuse a buffer; such inputs ran without that reuse. What onnx-tailor writes has no such names, and ran with.
- The tie and the recipe of 4 bits were run a second time on their own output, which changed nothing."""


def write_page(results: dict[str, Any], path: Path) -> None:
    """Write one table for each exporter."""
    made = [each for each in results.values() if not each["reason"]]
    wrong = [each for each in made if any(outcome["failures"] for outcome in each.get("recipes", {}).values())]
    families = len({each["family"] for each in made})
    lines = [_HEAD, ""]
    lines.append(
        f"**{len(made)} exports of {families} families, {len(wrong)} of them wrong afterwards**; "
        f"{len(results) - len(made)} more could not be exported, each for the reason given."
    )
    for exporter in dict.fromkeys(each["exporter"] for each in results.values()):
        own = {name: each for name, each in results.items() if each["exporter"] == exporter}
        versions = next((each["versions"] for each in own.values() if each["versions"]), {})
        lines += [f"\n## {exporter}\n", ", ".join(f"{name} {number}" for name, number in versions.items()) + "\n"]
        lines += ["| family | type | tie | 4 bits | 8 bits |", "| --- | --- | --- | --- | --- |"]
        lines += [_row(each) for each in own.values()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(result: dict[str, Any]) -> str:
    start = f"| {result['family']} | {result['dtype']} |"
    if result["reason"]:
        return f"{start} not exported: {_short(result['reason'])} | | |"
    if "recipes" not in result:
        return f"{start} exported, not checked yet | | |"
    refused = {reason for reason in result["loads"].values() if reason}
    cells = [_cell(name, each, bool(refused)) for name, each in result["recipes"].items()]
    if refused:
        cells[0] += f"; the input does not load: {_short(refused.pop())}"
    return f"{start} {' | '.join(cells)} |"


def _cell(name: str, outcome: dict[str, Any], refused: bool) -> str:
    if outcome["failures"]:
        return f"**{_short(outcome['failures'][0])}**"
    if name == "tie":
        told = outcome["tied"] if outcome["tied"].startswith(("tied", "already")) else f"no: {_short(outcome['tied'])}"
        told += "" if outcome["worst"] is None else f", {outcome['worst']:.0e}".replace(", 0e+00", ", equal")
        told += " as float32" if outcome.get("widened") else ""
        return told + "".join(f"; {_short(note)}" for note in outcome["notes"])
    figure = f", KL {outcome['kl']:.2g}" if outcome["kl"] is not None else ", not run" if refused else ""
    rest = [reason for reason in outcome["skips"] if any(word in reason for word in _LEFT)]
    left = f"; the others: {_short(rest[0])}" if rest and outcome["quantized"] < outcome["products"] else ""
    return f"{outcome['quantized']}/{outcome['products']}{figure}{left}"


def _short(text: str) -> str:
    plain = " ".join(re.sub(r"/\S*/(?=\w+\.onnx|checkpoint)", "", text).replace("|", "/").split())
    plain = re.sub(r"\x1b\[\d*m|https?://\S+", "", plain)
    return plain if len(plain) <= 160 else plain[:157] + "..."
