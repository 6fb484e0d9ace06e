"""What was done to a model: the error of each quantized weight, and the short receipt that the file itself carries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnx_tailor.graph.file.size import weight_tensors
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.quant import ErrorSums
from onnx_tailor.report import Change, PassReport
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.transposed_codes import TransposedCodes

__all__ = ["KEY", "read", "stamp", "with_errors"]

KEY = "onnx-tailor"
"""Key of the receipts in the model's metadata_props: a JSON list, the oldest run first."""


def with_errors(model: TailorModel, passes: Sequence[PassReport]) -> tuple[PassReport, ...]:
    """Return the model's passes with the error of each weight whose every tile was computed in this process.

    `relative_error` is the root of the squared error over the root of the squared weight, `signal_to_noise_db` the
    same in decibels, None where there is no error at all.
    """
    sums = _error_sums(model)
    return tuple(replace(each, changes=tuple(_with_error(change, sums) for change in each.changes)) for each in passes)


def stamp(model: TailorModel, header: Mapping[str, Any], passes: Sequence[PassReport]) -> None:
    """Add a receipt of this run to those that the model carries: `header` and a line for each pass.

    Holds no time and no path, so that equal runs write equal files; a run that changed nothing leaves none.
    """
    if not any(each.changes for each in passes):
        return
    receipt = {**header, "passes": [_summary(each) for each in with_errors(model, passes)]}
    receipts = [*read(model), receipt]
    model.ir_model.metadata_props[KEY] = json.dumps(receipts, ensure_ascii=False, separators=(",", ":"))


def read(model: TailorModel) -> list[dict[str, Any]]:
    """Return the receipts that the model carries, the oldest first; none where there are none that can be read."""
    try:
        found = json.loads(model.ir_model.metadata_props.get(KEY, "[]"))
    except (ValueError, RecursionError):  # another tool's text, or lists in lists without end
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _summary(done: PassReport) -> dict[str, Any]:
    """Return what a pass did, in short: counts and bytes, and of the quantized weights the worst and the whole."""
    found: dict[str, Any] = {"name": done.name, "changes": len(done.changes), "skips": len(done.skips)}
    moved = [change for change in done.changes if change.bytes_before or change.bytes_after]
    if moved:
        found["bytes"] = [sum(c.bytes_before for c in moved), sum(c.bytes_after for c in moved)]
    measured = [change for change in moved if "relative_error" in change.details]
    if measured:
        worst = max(measured, key=lambda change: float(change.details["relative_error"]))
        found["worst"] = {"weight": worst.details["weight"], "relative_error": worst.details["relative_error"]}
    return found


def _with_error(change: Change, sums: Mapping[str, ErrorSums]) -> Change:
    found = sums.get(str(change.details.get("weight")))
    if found is None or "bits" not in change.details:
        return change
    decibels = found.signal_to_noise_db
    errors = {
        "relative_error": float(f"{found.relative_error:.6g}"),
        "signal_to_noise_db": round(decibels, 3) if math.isfinite(decibels) else None,
    }
    return replace(change, details={**change.details, **errors})


def _error_sums(model: TailorModel) -> dict[str, ErrorSums]:
    """Return the sums of each quantized weight, by the weight's name."""
    jobs: dict[
        str, dict[QuantizeJob | TransposedCodes, QuantizeJob]
    ] = {}  # several where a weight was divided afterwards
    for value in weight_tensors(model):
        tensor = value.const_value
        job = tensor.blob.job if isinstance(tensor, WeightTensor) else None
        if isinstance(job, QuantizeJob | TransposedCodes):
            own = job.job if isinstance(job, TransposedCodes) else job
            jobs.setdefault(own.name, {}).setdefault(job, own)
    return {
        name: sum((job.errors.total() for job in parts.values()), ErrorSums())
        for name, parts in jobs.items()
        if all(job.errors.covers(tiled.tiles()) for tiled, job in parts.items())
    }
