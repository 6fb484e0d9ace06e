"""Part of the pass `quantize`: for `gptaq`, how the inputs of weights drift where what is before them is quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from onnx_tailor.calibration.follow import Rounding, follow
from onnx_tailor.errors import ModelError
from onnx_tailor.graph.meaning.candidates import find_candidates, layer_count
from onnx_tailor.graph.meaning.mixtures import find_mixtures
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.passes.input_statistics import InputData, require_here, unfollowed
from onnx_tailor.passes.remarked import Remarked
from onnx_tailor.passes.selectors import NodeRule, select
from onnx_tailor.passes.set_weights import QuantizedInSet
from onnx_tailor.weights.quantize_job import QuantizeJob

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Circumstances, Pass
    from onnx_tailor.passes.quantize import Quantize

__all__ = ["with_drift"]


def with_drift(passes: Sequence[Pass], models: Sequence[TailorModel], circumstances: Circumstances) -> list[Pass]:
    """Return the passes with calibrations that know the drift, where one of their weights is to make up for it.

    Raises:
        UsageError: a calibration cannot be read, or does not hold its tokens.
    """
    return [_informed(each, model, circumstances) for each, model in zip(passes, models, strict=True)]


def _informed(prepared: Pass, model: TailorModel, circumstances: Circumstances) -> Pass:
    from onnx_tailor.passes.quantize import Quantize

    if isinstance(prepared, Remarked):
        return replace(prepared, prepared=_informed(prepared.prepared, model, circumstances))
    assert isinstance(prepared, Quantize)
    data = InputData.open(prepared.calibration, prepared.methods())
    if data is None or "gptaq" not in prepared.methods():
        return prepared
    roundings = _roundings(prepared, model, data)
    followed = [each for each in roundings if each.follows]
    if not followed:
        return prepared
    if circumstances.dry_run:
        return _as_gptq(prepared, followed, "a dry run does not find out how inputs drift")
    require_here(model)
    if data.calibration.random:
        return _as_gptq(prepared, followed, "random tokens do not show how inputs drift")
    out = circumstances.scratch / f"{model.path.name}.drift.npz"
    folder = circumstances.scratch / f"{model.path.name}.states"
    folder.mkdir()
    weighted = [node for each in find_candidates(model) for node in each.readers]
    try:
        follow(model, data.calibration, roundings, weighted, out, folder, circumstances.progress)
    except ModelError as error:
        return _as_gptq(prepared, followed, f"the quantized model could not be followed: {error}")
    finally:
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()
    return replace(prepared, calibration=out)


def _roundings(options: Quantize, model: TailorModel, data: InputData) -> list[Rounding]:
    """Return all projections that will be quantized, but those that share a table."""
    candidates = find_candidates(model)
    rules = select(options.nodes, [*candidates, *find_mixtures(model)], [model])
    layers, in_set = layer_count(candidates), QuantizedInSet(model)
    found = []
    for each in candidates:
        if not each.projections or each.tables or each.stacks:
            continue
        rule = rules.get(each)
        job = options.match(each, rule, layers, data, in_set)
        if not isinstance(job, QuantizeJob):
            continue
        method = (rule or NodeRule()).method or options.method
        inside = all(projection.node.graph is model.graph for projection in each.projections)
        follows = method == "gptaq" and job.factor is not None and inside and not unfollowed(each)
        found.append(Rounding(each, job, follows))
    return found


def _as_gptq(prepared: Quantize, followed: Sequence[Rounding], reason: str) -> Pass:
    return Remarked(prepared=prepared, remarks={each.candidate.name: f"as gptq, since {reason}" for each in followed})
