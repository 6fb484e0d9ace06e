"""A kit to test a pass: the graph as text, before and after, and both models run on the same inputs.

Its own tests are those of the passes here; `docs/write-a-pass.md` shows it at work.
"""

from __future__ import annotations

from pathlib import Path

from onnx_tailor import pipeline, recipe, verify
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.model import ONNX_DOMAINS, TailorModel
from onnx_tailor.passes.base import Pass
from onnx_tailor.report import Report

__all__ = ["apply", "assert_same_outputs", "graph_text"]


def apply(pass_: Pass, model: Path, out: Path, *, target: str = "cpu") -> Report:
    """Run one pass on the ONNX file `model` as a recipe would, and write the result into the folder `out`."""
    return pipeline.run(recipe.of_passes([pass_]), model, out, target=target)


def graph_text(model: TailorModel | Path) -> str:
    """Return the graphs of a model as lines, one a node: `outputs = Operator<attributes>(inputs)`.

    Weights appear by name; types and metadata are left out. Made to stand in a test beside what is expected.
    """
    opened = model if isinstance(model, TailorModel) else load(model)
    lines = []
    for node in opened.nodes():
        outputs = ", ".join(value.name or "_" for value in node.outputs)
        inputs = ", ".join("" if value is None else value.name or "_" for value in node.inputs)
        known = sorted((name, each.value) for name, each in node.attributes.items() if _is_short(each.value))
        attributes = f"<{', '.join(f'{name}={value}' for name, value in known)}>" if known else ""
        domain = "" if node.domain in ONNX_DOMAINS else f"{node.domain}."
        lines.append(f"{outputs} = {domain}{node.op_type}{attributes}({inputs})")
    return "\n".join(lines)


def assert_same_outputs(before: Path, after: Path, *, limit: float) -> None:
    """Run both models in ONNX Runtime on the same random tokens, whole and (with a cache) token by token.

    Args:
        before: the ONNX file that was rewritten.
        after: the ONNX file that came of it.
        limit: the largest allowed difference of any output, as a part of that output's largest value; 0 asks for
            equality in every bit of every value. There is no default: say what the rewrite may change.

    Raises:
        AssertionError: an output differs by more, or is missing.
        ModelError: a model does not load or run.
    """
    found = verify.compare(before, after)
    missing = [*found.only_reference, *found.only_candidate]
    assert not missing, f"outputs of one model only: {', '.join(missing)}"
    far = [f"{each.name} by {each.max_rel:.3g}" for each in found.outputs if not each.max_rel <= limit]
    assert not far, f"differ by more than {limit:g} of their largest value: {', '.join(far)}"


def _is_short(value: object) -> bool:
    return isinstance(value, int | float | str) or (isinstance(value, tuple | list) and len(value) <= 8)
