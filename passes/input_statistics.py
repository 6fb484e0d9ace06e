"""What the methods that look at data, `imatrix`, `gptq` and `gptaq`, are given for each weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from onnx_tailor.calibration import combine
from onnx_tailor.calibration.file import Calibration, InputStatistics, read
from onnx_tailor.calibration.lookup import statistics
from onnx_tailor.errors import ModelError, OptionError
from onnx_tailor.graph.meaning.candidates import Candidate
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.quant import Method
from onnx_tailor.weights.factors import FactorCache, SharedFactor
from onnx_tailor.weights.quantize_job import Importance

HESSIAN_METHODS = frozenset({"gptq", "gptaq"})
DATA_METHODS = HESSIAN_METHODS | {"imatrix"}


@dataclass(frozen=True)
class Choice:
    """How a weight's scales and codes are found."""

    method: Method
    importance: Importance | None = None
    factor: SharedFactor | None = None
    remark: str = ""
    """Why it is not the method asked for, or what its data are worth; empty where there is nothing to say."""


@dataclass
class InputData:
    """A calibration and what was made of it: weights that read one input share its factor."""

    calibration: Calibration
    _cache: FactorCache = field(default_factory=FactorCache)
    _importance: dict[tuple[tuple[InputStatistics, ...], float], Importance] = field(default_factory=dict)
    _factors: dict[tuple[tuple[InputStatistics, ...], float], SharedFactor] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, methods: set[str]) -> InputData | None:
        """Read the file that `methods` need; None where they need none.

        Raises:
            UsageError: the file is missing or unreadable.
            OptionError: it is not needed, or holds no Hessians and gptq needs them.
        """
        needed = sorted(methods & DATA_METHODS)
        if path is None:
            return None
        if not needed:
            advice = "say `method: imatrix`, `method: gptq` or `method: gptaq`"
            raise OptionError(f"no method of this recipe looks at a calibration; {advice}", key=("calibration",))
        calibration = read(path)
        exact = [method for method in needed if method in HESSIAN_METHODS]
        if exact and not all(each.has_hessian for each in calibration.inputs.values()):
            advice = "calibrate with --hessians, or say `method: imatrix`"
            raise OptionError(f"{path} holds no Hessians, which {exact[0]} needs; {advice}", key=("calibration",))
        return cls(calibration)

    def choose(self, candidate: Candidate, method: str) -> Choice:
        """Return how a method of `DATA_METHODS` treats a weight; one that nothing is known about gets k_quant.

        Raises:
            ModelError: the calibration was made from another model.
        """
        found = statistics(self.calibration, candidate)
        if isinstance(found, str):
            return Choice("k_quant", remark=f"{method} is not possible: {found}")
        spread = combine.EMBEDDED if candidate.tables else 0.0
        key = (found, spread)
        if key not in self._importance:  # one for all, so that what reads one input can be packed
            self._importance[key] = Importance(combine.importance(found, spread))
        importance = self._importance[key]
        remark = "random tokens; a text is better" if self.calibration.random else ""
        if method == "imatrix":
            return Choice("k_quant", importance, remark=remark)
        drifts = len(found) == 1 and found[0].has_drift
        if key not in self._factors:
            load = partial(combine.moments, found, spread)
            self._factors[key] = SharedFactor(found[0].name, key, load, self._cache, drifts)
        if method == "gptaq" and not drifts:
            remark = "; ".join(filter(None, [unfollowed(candidate), remark]))
        return Choice("gptq", importance, self._factors[key], remark)


def unfollowed(candidate: Candidate) -> str:
    """Return why `gptaq` treats a weight as `gptq` does, as far as that is seen by the graph; empty where it does not.

    It needs one input that depends on other weights, by which it could drift.
    """
    if candidate.tables:
        return "its rows are embeddings, so it cannot make up for what comes before the head"
    if candidate.stacks:
        return "it is a stack of matrices"
    activations = {projection.activation for projection in candidate.projections}
    if len(activations) > 1:
        return "it has several inputs"
    if next(iter(activations)).producer() is None:
        return "it reads an input of the model"
    return ""


def require_here(model: TailorModel) -> None:
    """See that ONNX Runtime can load the files of a model.

    Raises:
        ModelError: they are on an object store.
    """
    if not all(file.path.exists() for file in model.files):
        raise ModelError(
            "the recipe runs the model to look at its inputs, which needs all files on this machine; run `onnx-tailor "
            "calibrate` on a copy, and give `calibration: FILE`"
        )
