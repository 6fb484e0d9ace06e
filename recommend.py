"""The recipe that one would write for a model after looking at it: `onnx-tailor init`.

What the file itself tells is not asked of the user; each line of the recipe says why it is there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_tailor import pipeline
from onnx_tailor import recipe as recipes
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.file.places import model_files
from onnx_tailor.graph.packing.packed import Packed, find_packed
from onnx_tailor.targets import DEFAULT, TARGETS, Target
from onnx_tailor.units import size, span

if TYPE_CHECKING:
    from onnx_tailor.graph.meaning.inspection import FileInspection
    from onnx_tailor.report import Report

__all__ = ["recommend"]


@dataclass(frozen=True)
class _Step:
    """One pass of the recipe, and why it is there or left out."""

    why: list[str]
    lines: list[str]


def recommend(model: Path, target: str = DEFAULT) -> str:
    """Return the text of a recipe for the ONNX file `model`, or for every one of a folder, commented.

    Raises:
        ModelError: a file cannot be read.
    """
    files = pipeline.inspect(model).files
    chosen = TARGETS[target]
    steps = [_unpack(model), _tie(files), _quantize(files, chosen), _layout(chosen)]
    body = [
        "recipe: 1",
        f"target: {target}  # {chosen.summary}",
        "passes:",
        *(line for step in steps if step for line in ([f"  # {why}" for why in step.why] + step.lines)),
    ]
    text = "\n".join(body) + "\n"
    report = pipeline.run(recipes.parse(text, "init"), model, None, target=target, dry_run=True)
    return "\n".join([*_head(model, target, report), text])


def _head(model: Path, target: str, report: Report) -> list[str]:
    before, after = report.before, report.after
    return [
        f"# Written by `onnx-tailor init` for {model.name}, to run on {target}. Edit it as you like.",
        "# yaml-language-server: $schema=recipe.schema.json",
        "#",
        f"# The file:          {size(before.weight_bytes)} of weights, {before.bits_per_weight:.2f} bits per weight.",
        f"# After this recipe: {size(after.weight_bytes)} of weights, {after.bits_per_weight:.2f} bits per weight.",
    ]


def _unpack(model: Path) -> _Step | None:
    packed: Counter[str] = Counter()
    for file in model_files(model):
        packed.update(", ".join(each.roles) for each in find_packed(load(file)) if isinstance(each, Packed))
    if not packed:
        return None
    found = " and ".join(f"{count} of {roles}" for roles, count in packed.items())
    return _Step(
        [
            f"Packed projections: {found}. Divided, each part can have bits of its own;",
            "packed, the model needs fewer kernels for a token. Take the # away to divide them.",
        ],
        ["  # - unpack-matmul"],
    )


def _tie(files: tuple[FileInspection, ...]) -> _Step:
    why, wanted = [], False
    for file in files:
        state, proof = file.tied["state"], file.tied["proof"]
        name = f"{file.file}: " if len(files) > 1 else ""
        wanted |= state in {"tied", "equal"}
        said = {
            "tied": f"the table and the head read one weight ({proof}); no copy of it is made in memory after this",
            "equal": f"the table and the head hold the same values ({proof}); they are stored once",
            "different": f"the table and the head are not the same weight ({proof})",
            "none": f"nothing to tie: {proof}",
        }[state]
        why.append(f"{name or 'Here '}{said}.")
    return _Step(why, ["  - tie-embeddings" if wanted else "  # - tie-embeddings"])


def _quantize(files: tuple[FileInspection, ...], target: Target) -> _Step:
    floats = [p for file in files for p in file.projections if p["dtype"] != "UINT8" and p.get("form") != "qdq"]
    if not floats:
        return _Step(["Every projection is quantized already."], ["  # - quantize"])
    layers = span([p["layer"] for p in floats if p["layer"] is not None])
    why = [f"{len(floats)} projections" + (f" in layers {layers}" if layers else "") + f": {_roles(floats)}."]
    types = {"float32" if p["dtype"] == "FLOAT" else str(p["dtype"]).lower() for p in floats}
    runs = {dtype for kernel in target.kernels_of("MatMulNBits") for dtype in kernel.dtypes}
    refused = sorted(types - runs)
    if runs and refused:
        why.append(f"{', '.join(refused)}: {target.name} multiplies {' or '.join(sorted(runs))} only; export it anew.")
    lines = [
        "  - quantize:",
        "      method: k_quant    # k_quant_mixed: 8 bits for the head and the sensitive layers",
        "      bits: 4            # 8 is hardly to be told from the original, at twice the bytes",
        "      block_size: 32     # larger: fewer scales, coarser",
    ]
    if target.name == "cpu":
        lines.append("      accuracy_level: 4  # multiply in 8-bit integers: much faster, and a little coarser")
    return _Step(why, lines)


def _layout(target: Target) -> _Step:
    why = f"Quantized tables end in the layout that {target.name} computes rightly, with every attribute written."
    return _Step([why], ["  - reshape-dim"])


def _roles(projections: list[Any]) -> str:
    counts = Counter(p["role"] or "unknown" for p in projections)
    return ", ".join(f"{count} {role}" for role, count in counts.items())
