"""Weights behind a DequantizeLinear that ONNX Runtime turns into floats at every run."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_tailor.graph.tables.qdq import find_qdq_weights
from onnx_tailor.lint.finding import Finding, Subject


def dequantized_whole(subject: Subject) -> Iterator[Finding]:
    """Note the QDQ weights that are not fused into a MatMulNBits."""
    for found in find_qdq_weights(subject.model):
        if not found.becomes_matmul_nbits:
            what = (
                f"{found.weight.name}, {found.bits} bits, is turned into floats whole at every run: ONNX Runtime makes "
                "a MatMulNBits of blocks along the first axis in front of a MatMul alone (measured with 1.31)"
            )
            yield subject.note("qdq", found.node.name, what, bytes_=found.weight.size * 4)
