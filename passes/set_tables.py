"""Part of the pass `quantize`: a table whose values another file of the set has quantized as its head or table.

So the encoder of a sequence-to-sequence set and the `embed_tokens` of a vision-language set read the bytes that the
decoder's head reads, whatever method found them.
"""

from __future__ import annotations

from onnx_tailor.graph.model import TailorModel
from onnx_tailor.weights.compare import compare
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.view import Window

__all__ = ["quantized_in_set"]


def quantized_in_set(model: TailorModel, view: Window) -> QuantizeJob | None:
    """Return how another file of the set quantizes the very values of `view`; None where none does."""
    seen: set[QuantizeJob] = set()
    for sibling in model.siblings:
        for value in sibling.graph.initializers.values():
            tensor = value.const_value
            job = tensor.blob.job if isinstance(tensor, WeightTensor) else None
            if not isinstance(job, QuantizeJob) or job in seen or job.view.shape != view.shape:
                continue
            seen.add(job)
            if job.view.dtype == view.dtype and compare(job.view, view).equal:
                return job
    return None
