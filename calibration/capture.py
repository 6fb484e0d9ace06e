"""Run the model on the tokens and watch what its projections read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from onnx_tailor.calibration.in_memory import runner
from onnx_tailor.calibration.inputs import ProjectionInput
from onnx_tailor.calibration.statistics import InputSums
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.file.watch import watch
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.progress import Progress
from onnx_tailor.weights.pool import workers

if TYPE_CHECKING:
    from onnx_tailor.verify.tokens import Tokens

_OUTPUT = "onnx_tailor.calibration."


def groups(inputs: Sequence[ProjectionInput], memory: int) -> Iterator[list[ProjectionInput]]:
    """Cut `inputs` into runs of neighbours whose Hessians fit `memory` bytes together, or that are alone."""
    group: list[ProjectionInput] = []
    used = 0
    for each in inputs:
        size = 4 * each.columns**2
        if group and used + size > memory:
            yield group
            group, used = [], 0
        group.append(each)
        used += size
    if group:
        yield group


def capture(
    path: Path, group: Sequence[ProjectionInput], tokens: Tokens, *, hessians: bool, progress: Progress
) -> list[InputSums]:
    """Run the model at `path` on every window and add up what the inputs of `group` hold.

    The graph that runs ends at these inputs: nothing behind the last of them is loaded or computed. Its weights are
    read where they lie.

    Raises:
        ModelError: ONNX Runtime cannot load or run the model.
    """
    sums = [InputSums.empty(each.name, each.columns, hessian=hessians) for each in group]
    model = runner(_watched(path, [each.name for each in group]))
    # A thread for each input rather than several for each product: none waits for another, and sums never depend on
    # how many there are.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers()) as pool:
        for window in tokens.windows:
            outputs = model.prefill(window[None, :])
            values = [outputs[f"{_OUTPUT}{number}"] for number in range(len(sums))]
            for each in pool.map(_added, sums, values):
                progress.advance(each)
    return sums


def _added(sums: InputSums, values: npt.NDArray[np.generic]) -> int:
    """Add the values of a window and return their bytes in float32."""
    sums.add(values)
    return 4 * values.size


def _watched(path: Path, names: Sequence[str]) -> TailorModel:
    """Return the model at `path` cut down to what computes the values `names`, its new outputs."""
    model = load(path)
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    watch(model, {f"{_OUTPUT}{number}": values[name] for number, name in enumerate(names)})
    return model
