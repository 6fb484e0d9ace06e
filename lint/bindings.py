"""Weights that are larger than what a device must be able to bind."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_tailor.graph.constants import FLOATS
from onnx_tailor.lint.finding import Finding, Mend, Subject


def too_large(subject: Subject) -> Iterator[Finding]:
    """Name each weight over the limit, and how to get it below."""
    limit = subject.target.binding_bytes
    if limit is None:
        return
    for value, tensor in subject.weights:
        if tensor.nbytes > limit:
            what = f"{tensor.nbytes >> 20} MiB in one weight, above {limit >> 20} ({subject.target.binding_source})"
            bits = 8 if tensor.size + tensor.size // 8 <= limit else 4
            mend = Mend("quantize", {"bits": bits, "embeddings": "true"}) if tensor.dtype in FLOATS else None
            yield subject.problem("binding", value.name, what, bytes_=tensor.nbytes, mend=mend)
