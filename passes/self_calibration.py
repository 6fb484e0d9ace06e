"""Part of the pass `quantize`: a calibration that the run itself makes, for each file of a set that needs one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_tailor.calibration.calibrate import calibrate, without_statistics
from onnx_tailor.calibration.tokens import choose
from onnx_tailor.errors import InputsError
from onnx_tailor.graph.meaning.candidates import Candidate, find_candidates
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.passes.input_statistics import DATA_METHODS, HESSIAN_METHODS, require_here
from onnx_tailor.passes.quantize_weight import widest
from onnx_tailor.passes.selectors import NodeRule, first_match
from onnx_tailor.passes.set_weights import earlier_equals
from onnx_tailor.weights.view import Window

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Circumstances
    from onnx_tailor.passes.quantize import Quantize


def self_calibrated(
    passes: Sequence[Quantize], models: Sequence[TailorModel], circumstances: Circumstances
) -> list[Quantize]:
    """Return the passes with a calibration of each model, on the bundled text or at worst on random tokens.

    A file all of whose weights stand in earlier ones needs none, since it is quantized as they are. A file of a set
    whose inputs cannot be filled from tokens gets one that says so.

    Raises:
        ModelError: a model cannot be run.
    """
    known = earlier_equals(models) if len(models) > 1 else [{}]
    settings: list[dict[Window, object]] = []
    found = []
    for each, model, earlier in zip(passes, models, known, strict=True):
        candidates = find_candidates(model)
        own = _settings(each, candidates)
        settings.append(own)
        looked_up = all(
            view in earlier and settings[earlier[view][0]].get(earlier[view][1]) == setting
            for view, setting in own.items()
        )
        needed = not looked_up and any(_looks_at_data(each, candidate) for candidate in candidates)
        found.append(replace(each, calibration=_calibration(each, model, circumstances)) if needed else each)
    return found


def _settings(options: Quantize, candidates: Sequence[Candidate]) -> dict[Window, object]:
    """Return by weight all that decides how it is quantized, but for its values."""
    found: dict[Window, object] = {}
    for each in candidates:
        found[each.matrix.view] = (_rule(options, each), each.place.role, each.place.layer, widest(each))
    return found


def _rule(options: Quantize, candidate: Candidate) -> NodeRule:
    """Return what the recipe says of a weight."""
    pattern = first_match(options.nodes, candidate)
    setting = None if pattern is None else options.nodes[pattern]
    return replace(setting, layers=None) if isinstance(setting, NodeRule) else NodeRule(bits=setting)


def _looks_at_data(options: Quantize, candidate: Candidate) -> bool:
    """Whether a weight is quantized by a method that looks at the inputs that it is multiplied with."""
    rule = _rule(options, candidate)
    left = (options.bits if rule.bits is None else rule.bits) in {"float", "skip"}
    return bool(candidate.projections) and not left and (rule.method or options.method) in DATA_METHODS


def _calibration(options: Quantize, model: TailorModel, circumstances: Circumstances) -> Path:
    require_here(model)
    hessians = bool(options.methods() & HESSIAN_METHODS)
    out, larger = (circumstances.scratch / f"{model.path.name}{kind}.npz" for kind in ("", ".hessians"))
    if larger.exists():
        return larger
    if hessians:
        out = larger
    elif out.exists():
        return out
    try:
        calibrate(model.path, out, choose(model.path), hessians=hessians, progress=circumstances.progress)
    except InputsError as error:
        if not model.siblings:
            raise
        without_statistics(model.path, out, f"the file cannot be run: {error}")
    return out
