"""Which statistics belong to which weight."""

from __future__ import annotations

from onnx_tailor.calibration.file import Calibration, InputStatistics
from onnx_tailor.calibration.inputs import fingerprint
from onnx_tailor.errors import ModelError
from onnx_tailor.graph.meaning.candidates import Candidate


def statistics(calibration: Calibration, candidate: Candidate) -> tuple[InputStatistics, ...] | str:
    """Return what the file holds of the inputs that meet `candidate`'s columns, or the reason why that is nothing.

    The names of activations find them: passes that tie or unpack weights rename those, but not what they multiply.

    Raises:
        ModelError: the file was made from another model.
    """
    path, name, columns = calibration.path, candidate.matrix.name, candidate.matrix.shape[1]
    known = calibration.weights.get(name)
    if known is not None and known != fingerprint(candidate.matrix.view):
        raise _another(calibration, f"weight {name} is not the one it was made with")
    if not candidate.projections:
        return "no projection multiplies it"
    found = []
    reasons = []
    for projection in candidate.projections:
        activation = projection.activation.name or ""
        entry = calibration.inputs.get(activation)
        if entry is None and activation in calibration.skipped:
            reasons.append(calibration.skipped[activation])
            continue
        if entry is None:
            raise _another(calibration, f"it has nothing of the input of {projection.name}")
        if entry.columns != columns:
            raise _another(calibration, f"the input of {projection.name} has {columns} columns, not {entry.columns}")
        if entry.count and entry not in found:
            found.append(entry)
        elif not entry.count:
            reasons.append(f"no token of the calibration reached it; use a longer text than that of {path.name}")
    return tuple(found) or reasons[0]


def _another(calibration: Calibration, what: str) -> ModelError:
    return ModelError(
        f"{calibration.path}: was made from another model ({calibration.model}): {what}; "
        "run `onnx-tailor calibrate` on this one"
    )
