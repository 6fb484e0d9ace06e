"""Run recipes on every export of the matrix, check what came out, and write the table in docs/exports.md.

`python tests/exporters/matrix.py EXPORTS`, in the project's own environment, after `build.py EXPORTS`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from exports_page import write_page
from widened import widen

from onnx_tailor import pipeline, recipe
from onnx_tailor.errors import ModelError, UsageError
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.heads import Head, QuantizedHead, find_heads
from onnx_tailor.graph.meaning.products import find_products
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.projections import find_projections
from onnx_tailor.graph.tables.read_block_table import FoundTable, find_block_tables
from onnx_tailor.graph.tables.stacks import is_routed
from onnx_tailor.report import Report
from onnx_tailor.verify.metrics import difference, logit_sums
from onnx_tailor.verify.session import LanguageModel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "exports.md"
_QUANTIZE = "  - quantize: {{method: k_quant, bits: {bits}, block_size: 32}}\n  - reshape-dim\n"
RECIPES = {
    "tie": "recipe: 1\npasses:\n  - tie-embeddings\n",
    "4 bits": "recipe: 1\npasses:\n  - tie-embeddings\n" + _QUANTIZE.format(bits=4),
    "8 bits": "recipe: 1\npasses:\n  - tie-embeddings\n" + _QUANTIZE.format(bits=8),
}
TOLERANCE = {"fp32": 1e-5}
TOLERANCE_16 = 2e-3
KL = {"4 bits": 1.0, "8 bits": 0.05}
"""Largest mean divergence that random weights may show; a wrong table or a lost bias shows more than 1."""
QUANTIZED = "tied with the quantized head, whose rounding its rows take"


@dataclass
class Outcome:
    """What one recipe did to one export; `failures` are what must not be."""

    tied: str = ""
    """`tied`, `already`, or why not."""
    quantized: int = 0
    products: int = 0
    """Products with stored weights before the recipe, quantized ones included."""
    skips: list[str] = field(default_factory=list)
    worst: float | None = None
    """Largest relative difference of an output, over prefill and decoding; None where nothing ran."""
    kl: float | None = None
    widened: bool = False
    """Whether it ran with bfloat16 widened to float32, since ONNX Runtime does not load the input as it is."""
    bytes_before: int = 0
    bytes_after: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the input itself cannot do."""


def check_export(folder: Path, dtype: str) -> dict[str, Any]:
    """Run every recipe on one export."""
    found: dict[str, Any] = {"loads": {}, "recipes": {}}
    for file in sorted(folder.glob("*.onnx")):
        try:
            LanguageModel(file)
            found["loads"][file.name] = None
        except ModelError as error:
            found["loads"][file.name] = str(error).split("does not load in ONNX Runtime: ")[-1]
    for name, text in RECIPES.items():
        with tempfile.TemporaryDirectory() as work:
            found["recipes"][name] = asdict(_check_recipe(folder, Path(work), name, text, dtype, found["loads"]))
    return found


def _check_recipe(folder: Path, work: Path, name: str, text: str, dtype: str, loads: dict[str, str | None]) -> Outcome:
    outcome = Outcome()
    (work / "recipe.yaml").write_text(text)
    steps = recipe.load(str(work / "recipe.yaml"))
    try:
        report = pipeline.run(steps, folder, work / "out")
    except (ModelError, UsageError) as error:
        outcome.failures.append(f"refused: {str(error).replace(str(folder), '')}")
        return outcome
    except Exception as error:  # a traceback is a defect of ours, and a cell of the table
        outcome.failures.append(f"{type(error).__name__}: {error}")
        return outcome
    outcome.bytes_before, outcome.bytes_after = report.before.weight_bytes, report.after.weight_bytes
    outcome.tied = _tied(report)
    outcome.skips = sorted({skip.reason for each in report.passes for skip in each.skips})
    for file in sorted((work / "out").glob("*.onnx")):
        before, after = load(folder / file.name), load(file)
        outcome.products += len(find_products(before.nodes()))
        outcome.quantized += sum(node.op_type == "MatMulNBits" for node in after.nodes()) + _stacks(after)
        if name != "tie":
            outcome.failures += _unexplained(after, report) + list(_tables_differ(before, after))
        if loads[file.name] is None:
            _compare(folder / file.name, file, name, dtype, outcome)
        elif dtype == "bf16":
            pair = work / "widened" / "before" / file.name, work / "widened" / "after" / file.name
            for original, wide in zip((folder / file.name, file), pair, strict=True):
                widen(original, wide)
            _compare(*pair, name, "fp32", outcome)
            outcome.widened = True
    if name == "8 bits":  # the road of 4 bits, which is run twice
        return outcome
    try:
        again = pipeline.run(steps, work / "out", work / "again")
        changes = [change.where for each in again.passes for change in each.changes]
        same = all((work / "again" / f.name).read_bytes() == f.read_bytes() for f in (work / "out").glob("*.onnx*"))
        if changes or not same:
            outcome.failures.append(f"a second run changes {changes or 'bytes'}")
    except (ModelError, UsageError) as error:
        outcome.failures.append(f"a second run is refused: {error}")
    return outcome


def _stacks(model: TailorModel) -> int:
    """Return how many products read experts that are chosen from a quantized stack."""
    return sum(isinstance(found, FoundTable) and is_routed(found.ids) for found in find_block_tables(model))


def _tied(report: Report) -> str:
    parts = [each for each in report.passes if each.name == "tie-embeddings"]
    changes = [change for each in parts for change in each.changes]
    if any("worst_steps" in change.details for change in changes):
        return QUANTIZED
    if changes:
        return "tied"
    skips = [skip for each in parts for skip in each.skips]
    if any(skip.details.get("tied") for skip in skips):
        return "already"
    return "; ".join(sorted({skip.reason for skip in skips}))


def _unexplained(after: TailorModel, report: Report) -> list[str]:
    """Return the projections that are neither quantized nor skipped with a reason."""
    explained = {skip.where for each in report.passes for skip in each.skips}
    return [f"{p.name} is left in float without a reason" for p in find_projections(after) if p.name not in explained]


def _tables_differ(before: TailorModel, after: TailorModel) -> Iterator[str]:
    """Yield where the rows that the embedding gathers are not those that the head multiplies by, bit for bit.

    A table of another form that was in the input already is left as it is, with a Skip that says so; so is one whose
    head the input has in float.
    """
    float_heads = any(isinstance(head, Head) for head in find_heads(before))
    strange = {
        found.node.name for found in find_block_tables(before) if float_heads or not isinstance(found, FoundTable)
    }
    heads = [head.node for head in find_heads(after) if isinstance(head, QuantizedHead)]
    for table in find_block_tables(after):
        if not isinstance(table, FoundTable):
            if table.node.name not in strange:
                yield f"{table.node.name}: {table.reason}"
            continue
        if table.node.name in strange or is_routed(table.ids):  # experts are no tokens
            continue
        for head in heads:
            ours = (table.table.codes, table.table.scales, table.table.zero_points)
            for what, one, value in zip(
                ("codes", "scales", "zero points"), ours, (*head.inputs[1:4], None), strict=False
            ):
                if (one is None) != (value is None) or (one is not None and _bytes(one) != _bytes(value)):
                    yield f"{what} of {table.node.name} and {head.name} differ"


def _bytes(value: ir.Value | None) -> bytes:
    while value is not None and value.producer() is not None:
        value = value.producer().inputs[0]  # type: ignore[union-attr]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.tobytes()


def _compare(before: Path, after: Path, name: str, dtype: str, outcome: Outcome) -> None:
    try:
        ours, theirs = LanguageModel(before), LanguageModel(after)
    except ModelError as error:
        outcome.failures.append(str(error).split("does not load", 1)[-1])
        return
    ids = np.random.default_rng(1).integers(3, 380, (1, 9))
    inputs = [(ids, None)]
    steps = []
    for tokens, cache in inputs:
        try:
            one = ours.prefill(tokens, cache)
        except ModelError as error:
            what = "decode" if cache else "run"
            outcome.notes.append(f"{before.name}: the input does not {what}: {str(error).split(': ', 1)[-1]}")
            break
        try:
            steps.append((one, theirs.prefill(tokens, cache), tokens))
        except ModelError as error:
            outcome.failures.append(str(error))
            return
        if ours.has_past and cache is None:
            inputs.append((ids[:, -2:-1], ours.cache(one, ids)))
    outcome.notes += ["the input runs only with enable_mem_reuse off"] if ours.note else []
    if theirs.note and (name != "tie" or outcome.tied.startswith("tied")):  # what nothing changed keeps its sizes
        outcome.failures.append(theirs.note)
    logits = ours.logits
    for one, other, tokens in steps:
        worst = max(difference(one[key], other[key]).max_rel for key in one)
        outcome.worst = max(outcome.worst or 0.0, worst)
        if logits is not None and tokens.shape[1] > 1:
            outcome.kl = max(outcome.kl or 0.0, logit_sums(one[logits][0], other[logits][0], tokens[0]).kl_mean)
    limit = TOLERANCE.get(dtype, TOLERANCE_16)
    if name == "tie" and outcome.tied != QUANTIZED and outcome.worst is not None and not outcome.worst <= limit:
        outcome.failures.append(f"{after.name}: outputs differ by {outcome.worst:.2g}")
    if outcome.kl is not None and not outcome.kl <= KL.get(name, KL["4 bits"]):
        outcome.failures.append(f"{after.name}: KL divergence {outcome.kl:.3g}")


def main() -> None:
    """Check the exports, keep the results beside them, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--missing", action="store_true", help="leave alone what was checked before")
    options = parser.parse_args()
    for manifest in sorted(options.exports.glob("*/manifest.json")):
        name, facts = manifest.parent.name, json.loads(manifest.read_text())
        kept = manifest.with_name("result.json")
        if not fnmatch.fnmatch(name, options.only) or (options.missing and kept.exists()):
            continue
        result = {**facts, **({} if facts["reason"] else check_export(manifest.parent, facts["dtype"]))}
        failures = {key: each["failures"] for key, each in result.get("recipes", {}).items() if each["failures"]}
        print(name, facts["reason"] or failures or "right", flush=True)
        kept.write_text(json.dumps(result, indent=1) + "\n")
    results = {}
    for manifest in sorted(options.exports.glob("*/manifest.json")):
        kept = manifest.with_name("result.json")
        results[manifest.parent.name] = json.loads((kept if kept.exists() else manifest).read_text())
    write_page(results, PAGE)


if __name__ == "__main__":
    main()
