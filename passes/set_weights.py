"""Part of the pass `quantize`: weights that stand in several files of a set are quantized alike, to be stored once.

So the encoder of a sequence-to-sequence set and the `embed_tokens` of a vision-language set read the bytes that the
decoder's head reads, and the two decoders the same layers, whatever method found them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx_tailor.graph.meaning.candidates import find_candidates
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.weights.compare import compare
from onnx_tailor.weights.equal import equal_views, sample
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.transposed_codes import TransposedCodes
from onnx_tailor.weights.view import Window

__all__ = ["QuantizedInSet", "earlier_equals"]


class QuantizedInSet:
    """What the other files of a set have quantized so far."""

    def __init__(self, model: TailorModel) -> None:
        """Look at the siblings of `model`."""
        self._jobs: dict[tuple[object, ...], dict[QuantizeJob, str]] = {}
        self._samples: dict[Window, bytes] = {}
        for sibling in model.siblings:
            for job in _jobs(sibling):
                self._jobs.setdefault((job.view.dtype, job.view.shape), {}).setdefault(job, sibling.path.name)

    def find(self, view: Window) -> tuple[QuantizeJob, str] | None:
        """Return how a file quantizes the very values of `view` [N, K], and its name; None where none does."""
        for job, file in self._jobs.get((view.dtype, view.shape), {}).items():
            if self._sample(job.view) == self._sample(view) and compare(job.view, view).equal:
                return job, file
        return None

    def _sample(self, view: Window) -> bytes:
        if view not in self._samples:
            self._samples[view] = sample(view)
        return self._samples[view]


def earlier_equals(models: Sequence[TailorModel]) -> list[dict[Window, tuple[int, Window]]]:
    """Return for each file of a set which of its candidates' views [N, K] an earlier file has, and where.

    Raises:
        ModelError: a weight cannot be read.
    """
    views = [[candidate.matrix.view for candidate in find_candidates(model)] for model in models]
    same = equal_views(list(dict.fromkeys(view for each in views for view in each)))
    first: dict[tuple[object, ...], tuple[int, Window]] = {}
    found: list[dict[Window, tuple[int, Window]]] = []
    for number, each in enumerate(views):
        known = {}
        for view in each:
            key = (same.get(view, view), view.dtype, view.shape)
            before = first.setdefault(key, (number, view))
            if before[0] < number:
                known[view] = before
        found.append(known)
    return found


def _jobs(model: TailorModel) -> Iterator[QuantizeJob]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            job = tensor.blob.job if isinstance(tensor, WeightTensor) else None
            if isinstance(job, TransposedCodes):
                yield job.job
            elif isinstance(job, QuantizeJob):
                yield job
