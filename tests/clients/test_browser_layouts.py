"""What `targets/webgpu.toml` and `wasm.toml` say of layouts, run in the builds of ONNX Runtime for JavaScript.

`python tests/clients/test_browser_layouts.py` prints the table of docs/browser.md.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the script; pytest has it already
import javascript
from javascript import RUNTIMES, Answers, Runtime
from quantized_models import FLOATS, IDS, LAYOUTS, Case, build, convert, possible, weights

from onnx_tailor.targets import TARGETS, TableForm, Target

COLUMNS = (64, 96, 80)  # 2 and 3 blocks, and 3 of which the last is padded
CASES = [
    *(Case(bits, symmetric, "float32", k) for bits, symmetric, k in product((2, 4, 8), (False, True), COLUMNS)),
    *(Case(bits, symmetric, "float16", 96) for bits, symmetric in product((2, 4, 8), (False, True))),
]
TARGET = {
    "node": "cpu",
    "wasm": "cpu",
    "asyncify on wasm": "wasm",
    "asyncify on webgpu": "webgpu",
    "jspi on webgpu": "webgpu",
}
"""The target by whose rows a runtime has to behave; JSEP, which is being given up, is none."""


@dataclass(frozen=True)
class Question:
    """One table in one layout, and how many rows the head multiplies: 1 is a step of decoding."""

    case: Case
    layout: str
    rows: int

    def __str__(self) -> str:
        return f"{self.case}-{self.layout}-{self.rows}"


QUESTIONS = [
    *(Question(case, layout, case.k) for case in CASES for layout in LAYOUTS if possible(case, layout)),
    *(Question(case, "plain", 1) for case in CASES),
]


def ask(runtime: Runtime, folder: Path) -> Answers:
    """Run every question's model."""
    cases = []
    for question in QUESTIONS:
        inside = folder / str(question)
        inside.mkdir()
        case = question.case
        path = convert(build(inside, case), inside, question.layout)
        feeds = {"ids": IDS, "x": np.eye(case.k, dtype=FLOATS[case.dtype])[: question.rows]}
        cases.append(javascript.Case(str(question), path, feeds))
    return javascript.run(runtime, folder, cases)


def verdict(question: Question, found: dict[str, np.ndarray] | str) -> str:
    """Say `right`, `refused`, or what is wrong."""
    if isinstance(found, str):
        return "refused"
    case = question.case
    stored = weights(case).values.astype(FLOATS[case.dtype])
    wrong = [] if np.array_equal(found["product"], stored.T[: question.rows]) else ["head"]
    largest = np.abs(weights(case).scales.astype(np.float32)).max() * (1 << case.bits)
    # `correction` has three roundings in the place of one.
    allowed = 2 * float(np.finfo(FLOATS[case.dtype]).eps) * largest if question.layout == "correction" else 0.0
    if not np.abs(found["rows"].astype(np.float64) - stored[IDS].astype(np.float64)).max() <= allowed:
        wrong.append("table")
    return " and ".join([*wrong, "wrong"]) if wrong else "right"


def computes(answers: Answers, question: Question) -> bool:
    """Whether the adapter has the question's type at all."""
    return question.case.dtype != "float16" or answers.about.get("half", True) or answers.about["adapter"] is None


def refuses(target: Target, question: Question) -> bool:
    """Whether the target's rows say that the layout is not right now."""
    case = question.case
    form = TableForm(case.bits, not case.symmetric, case.blocks * case.bits % 8 == 0)
    return any(wrong.holds(question.layout, form) and wrong.until is None for wrong in target.wrong)


@pytest.mark.parametrize("runtime", [each for each in RUNTIMES if each.name in TARGET], ids=lambda each: each.name)
def test_the_table_of_layouts_is_true(tmp_path: Path, runtime: Runtime) -> None:
    if why := javascript.missing(browser=runtime.build != "node"):
        pytest.skip(why)
    answers = ask(runtime, tmp_path)
    if runtime.provider == "webgpu" and answers.about["adapter"] is None:
        pytest.skip("Chromium has no WebGPU adapter")
    target = TARGETS[TARGET[runtime.name]]
    asked = [question for question in QUESTIONS if computes(answers, question)]
    assert len(asked) > 60
    expected = {str(question): "refused" if refuses(target, question) else "right" for question in asked}
    assert {str(question): verdict(question, answers.results[str(question)]) for question in asked} == expected


def main() -> None:
    """Print, for each runtime, which layouts are right, refused or wrong."""
    for runtime in RUNTIMES:
        with tempfile.TemporaryDirectory(prefix="onnx-tailor-layouts-") as scratch:
            answers = ask(runtime, Path(scratch))
        print(runtime.name, answers.about)
        groups: dict[tuple[str, str], dict[str, list[str]]] = {}
        for question in QUESTIONS:
            if computes(answers, question):
                case = question.case
                kind = f"{case.bits} bits, {'no ' if case.symmetric else ''}zero points"
                found = groups.setdefault((kind, question.layout), {})
                said = verdict(question, answers.results[str(question)])
                found.setdefault(said, []).append(f"{case.dtype} {case.k} x{question.rows}")
        for (kind, layout), found in sorted(groups.items()):
            whole = len(found) == 1
            print(
                f"  {kind:24}{layout:12}", "; ".join(v if whole else f"{v}: {', '.join(k)}" for v, k in found.items())
            )


if __name__ == "__main__":
    main()
