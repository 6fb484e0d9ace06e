"""Which activations to look at: each distinct input of a projection, once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnx_tailor.graph.meaning.candidates import Candidate
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.report import Skip
from onnx_tailor.weights.joined import Joined
from onnx_tailor.weights.view import View, Window

_SAMPLE = 64 << 10
"""Bytes at either end of a weight that tell it from another model's."""


@dataclass(frozen=True)
class ProjectionInput:
    """An activation [..., columns] that one or several projections multiply: q, k and v share theirs."""

    value: ir.Value
    columns: int
    weights: tuple[str, ...]
    """Names of the weights that read it."""

    @property
    def name(self) -> str:
        """The value's name: that of its statistics, which passes leave alone when they rewrite a projection."""
        return self.value.name or ""


def find_inputs(model: TailorModel, candidates: Sequence[Candidate]) -> tuple[list[ProjectionInput], list[Skip]]:
    """Return the distinct inputs of the candidates' projections, in the order of the graph, and what has none."""
    readers: dict[ir.Value, dict[str, int]] = {}
    skips = []
    for candidate in candidates:
        for projection in candidate.projections:
            if projection.node.graph is not model.graph:
                reason = "its projection stands in a subgraph, whose values ONNX Runtime does not give out"
                activation = projection.activation.name or ""
                skips.append(Skip(where=projection.name, reason=reason, details={"activation": activation}))
                continue
            readers.setdefault(projection.activation, {})[candidate.matrix.name] = candidate.matrix.shape[1]
    inputs = [
        ProjectionInput(value, next(iter(weights.values())), tuple(weights)) for value, weights in readers.items()
    ]
    return inputs, skips


def fingerprint(view: Window) -> str:
    """Return a hash of a weight's type, size and first and last bytes, whichever way it is read."""
    digest = hashlib.sha256(f"{view.dtype} {sorted(view.shape)}".encode())
    if isinstance(view, Joined):
        return hashlib.sha256("".join(map(fingerprint, view.parts)).encode()).hexdigest()
    assert isinstance(view, View)
    for start in (0, max(0, view.nbytes - _SAMPLE)):
        sample = np.empty(min(_SAMPLE, view.nbytes - start), np.uint8)
        view.file.read_into(view.offset + start, sample)
        digest.update(sample.tobytes())
    return digest.hexdigest()
