"""What `quantize` says where the target cannot multiply by what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_tailor import pipeline, recipe
from onnx_tailor.targets import TARGETS

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model.onnx"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [2, 4])
def test_bits_without_a_kernel_are_told(target: str, bits: int) -> None:
    chosen = recipe.load("rtn", settings=[f"quantize.bits={bits}"])
    report = pipeline.run(chosen, EXAMPLE, None, target=target, dry_run=True)
    (done,) = [done for done in report.passes if done.name == "quantize"]
    told = {f"no kernel of {bits} bits on {target}" in change.what for change in done.changes}
    assert told == {bits == 2 and target in {"cuda", "dml", "portable"}}
