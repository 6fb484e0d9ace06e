"""Calibrate for `gptaq`: look at the inputs that projections have where what is before them is quantized already.

The model runs once as it is and once with quantized weights, both segment by segment: when the inputs of some
projections are known in both, so is their drift; their weights are rounded, and the next segment runs on what they
yield.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnx_tailor.calibration.drift import DriftSums
from onnx_tailor.calibration.file import Calibration, InputStatistics, Writer, writing
from onnx_tailor.calibration.in_memory import runner
from onnx_tailor.calibration.states import States
from onnx_tailor.graph.file.segments import Segment, narrow, segments
from onnx_tailor.graph.file.watch import let_override
from onnx_tailor.graph.meaning.candidates import Candidate
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.progress import Progress
from onnx_tailor.quant import Moments, dequantize
from onnx_tailor.verify.session import LanguageModel
from onnx_tailor.weights.factors import FactorCache, SharedFactor
from onnx_tailor.weights.pool import workers
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.tensors import WeightTensor

__all__ = ["Rounding", "follow"]

Array = npt.NDArray[Any]
TOKENS = 32 << 10
"""Tokens that the models run on, in windows from all over the calibration's: more tell little more of a drift."""
_STATE, _OUTPUT = "onnx_tailor.state.", "onnx_tailor.next."


@dataclass(frozen=True)
class Rounding:
    """A weight that is quantized, and how."""

    candidate: Candidate
    job: QuantizeJob
    """How, as far as is known before the quantized model ran."""
    follows: bool
    """Whether it is to make up for the drift of its input, the only one that it has."""

    @property
    def activation(self) -> str:
        """Name of its first input."""
        return self.candidate.projections[0].activation.name or ""

    @property
    def nodes(self) -> frozenset[ir.Node]:
        """What multiplies by it."""
        return frozenset(projection.node for projection in self.candidate.projections)


def follow(
    model: TailorModel,
    calibration: Calibration,
    roundings: Sequence[Rounding],
    weighted: Iterable[ir.Node],
    out: Path,
    folder: Path,
    progress: Progress,
) -> None:
    """Write into `out` what `calibration` holds, with the drift of the inputs of all roundings that follow it.

    `weighted` are all nodes that read a weight, quantized or not. Values between segments are kept in `folder`: about
    the bytes of two activations for each token, twice. Memory holds the weights of one segment.

    Raises:
        ModelError: the model cannot be run in segments.
        UsageError: the calibration cannot be read, or does not hold its tokens.
    """
    groups: dict[str, list[Rounding]] = {}
    for each in roundings:
        if each.follows:
            groups.setdefault(each.activation, []).append(each)
    values = {value.name: value for node in model.graph for value in node.outputs if value.name in groups}
    parts = segments(model, weighted, list(values.values()))
    tokens = calibration.windows()
    windows = tokens[:: max(1, -(-tokens.size // TOKENS))]
    walk = _Walk(model, windows, States(folder), progress)
    progress.start("following the quantized model", windows.size * 2 * len(parts), unit="tokens")
    with writing(out) as file:
        entries = _Entries(file)
        for number, (name, part) in enumerate(zip(values, parts, strict=True)):
            walk.round([each for each in roundings if not each.follows and each.nodes & part.nodes])
            walk.run(part)
            known = calibration.inputs[name or ""]
            drift = walk.drift(known.name, known.columns)
            entries.add(known, drift)
            ahead = frozenset[ir.Node]().union(*(later.nodes for later in parts[number + 1 :]))
            walk.forget(part.yields, ahead)
            walk.round([_informed(each, drift) for each in groups[known.name] if each.nodes & ahead])
        for name, known in calibration.inputs.items():
            if name not in groups:
                entries.add(known, None)
        header = {field: getattr(calibration, field) for field in ("model", "source", "random", "tokens", "skipped")}
        file.add("tokens", tokens)
        file.add("token_counts", calibration.token_counts())
        file.header({**header, "hessians": True, "inputs": entries.written, "weights": calibration.weights})


def _informed(rounding: Rounding, drift: npt.NDArray[np.float32] | None) -> Rounding:
    """Return the rounding once the drift of its input is known."""
    before = rounding.job.factor
    assert before is not None

    def load() -> Moments:
        return before.load()._replace(drift=drift)

    factor = SharedFactor(before.name, before.source, load, FactorCache(), drifts=drift is not None)
    return replace(rounding, job=replace(rounding.job, factor=factor))


class _Entries:
    """Writes what is known of inputs."""

    def __init__(self, file: Writer) -> None:
        self._file = file
        self.written: list[dict[str, Any]] = []

    def add(self, known: InputStatistics, drift: npt.NDArray[np.float32] | None) -> None:
        number = len(self.written)
        self._file.add(f"{number}.mean_square", known.mean_square())
        self._file.add(f"{number}.hessian", known.hessian())
        if drift is not None:
            self._file.add(f"{number}.drift", drift)
        found = {"name": known.name, "columns": known.columns, "count": known.count, "drift": drift is not None}
        self.written.append(found)


class _Walk:
    """Both models between two segments."""

    def __init__(self, model: TailorModel, windows: npt.NDArray[np.int64], states: States, progress: Progress) -> None:
        self._model = model
        self._windows = windows
        self._states = states
        self._progress = progress
        self._weights: dict[str, tuple[Array, frozenset[ir.Node]]] = {}
        """Quantized weights by the initializer in whose place they stand, each with its readers."""

    def round(self, roundings: Sequence[Rounding]) -> None:
        """Quantize these weights; segments that run from now on read them so."""
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers()) as pool:
            for each in roundings:
                tiles = list(pool.map(each.job.quantized, each.job.tiles()))
                columns = each.candidate.matrix.shape[1]
                values = np.concatenate([dequantize(tile, columns, each.job.format) for tile in tiles])
                for name, own in _initializers(each.candidate, values).items():
                    self._weights[name] = own, each.nodes

    def run(self, part: Segment) -> None:
        """Run a segment on every window, as it is and quantized."""
        session, weights = self._session(part)
        alone = not weights and self._states.same(part.reads)
        used = {each.name for each in session.inputs}
        read = [(title, name) for at, name in enumerate(part.reads) if (title := f"{_STATE}{at}") in used]
        for number, window in enumerate(self._windows):
            for quantized in (False,) if alone else (False, True):
                given = {title: self._states.get(name, number, quantized=quantized) for title, name in read}
                outputs = session.prefill(window[None], given=given | (weights if quantized else {}))
                for at, name in enumerate(part.yields):
                    if name in part.reads:  # handed on as it is
                        continue
                    stands_for = (False, True) if alone else (quantized,)
                    self._states.put(name, number, outputs[f"{_OUTPUT}{at}"], quantized=stands_for)
                self._progress.advance(len(window) * (2 if alone else 1))

    def drift(self, name: str, columns: int) -> npt.NDArray[np.float32] | None:
        """Return how an input drifts; None where that cannot be told."""
        sums = DriftSums(name, columns)
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers()) as pool:
            for number in range(len(self._windows)):
                plain, quantized = (self._states.get(name, number, quantized=each) for each in (False, True))
                sums.add(plain, quantized, pool)
        return sums.drift()

    def forget(self, names: Iterable[str], ahead: frozenset[ir.Node]) -> None:
        """Keep only the values `names`, and the weights that a node of `ahead` reads."""
        self._states.forget_all_but(names)
        self._weights = {name: kept for name, kept in self._weights.items() if kept[1] & ahead}

    def _session(self, part: Segment) -> tuple[LanguageModel, dict[str, Array]]:
        """Return a segment in ONNX Runtime, and the quantized weights that it reads."""
        copy = replace(self._model, ir_model=self._model.ir_model.clone(), _names=set())
        reads = {name: (f"{_STATE}{at}", self._states.dtype(name)) for at, name in enumerate(part.reads)}
        yields = {name: f"{_OUTPUT}{at}" for at, name in enumerate(part.yields)}
        narrow(copy, reads, {name: title for name, title in yields.items() if name not in reads})
        own = {name: value for name, value in copy.graph.initializers.items() if value.uses() and name in self._weights}
        let_override(copy, own.values())
        return runner(copy), {name: self._weights[name][0] for name in own}


def _initializers(candidate: Candidate, values: npt.NDArray[np.float32]) -> Mapping[str, Array]:
    """Return weights [N, K] as the initializers that stand for them hold them."""
    found = {}
    for projection in candidate.projections:
        root = projection.weight.root
        tensor = root.const_value
        assert isinstance(tensor, WeightTensor)
        lies = values if tensor.view == candidate.matrix.view else values.T
        found[root.name or ""] = np.ascontiguousarray(lies, tensor.dtype.numpy())
    return found
