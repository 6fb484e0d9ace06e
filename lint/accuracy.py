"""Quantized weights that are turned into floats whole at every run, by their accuracy_level or by the target."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_tailor.graph.model import attribute
from onnx_tailor.graph.tables.nbits_weight import has_float_points, nbits_nodes
from onnx_tailor.lint.finding import Finding, Mend, Subject


def slow_eight_bits(subject: Subject) -> Iterator[Finding]:
    """Note the MatMulNBits nodes that the CPU's integer kernels pass over."""
    slow = [
        node
        for node in nbits_nodes(subject.model)
        if attribute(node, "bits", 4) == 8 and attribute(node, "accuracy_level", 0) not in {4}
    ]
    if slow and subject.target.integer_kernels:
        size = max(attribute(node, "N", 0) * attribute(node, "K", 0) * 4 for node in slow)
        what = f"{len(slow)} MatMulNBits of 8 bits without accuracy_level 4: {subject.target.integer_kernels}"
        mend = Mend("accuracy-level", {"level": 4})
        yield subject.note("accuracy-level", slow[0].name, what, bytes_=size, mend=mend)


def float_points(subject: Subject) -> Iterator[Finding]:
    """Note the MatMulNBits nodes with float zero points where those cost more than integers."""
    nodes = [node for node in nbits_nodes(subject.model) if has_float_points(node)]
    if nodes and subject.target.float_points_cost:
        size = max(attribute(node, "N", 0) * attribute(node, "K", 0) * 4 for node in nodes)
        what = f"{len(nodes)} MatMulNBits with float zero points: {subject.target.float_points_cost}"
        yield subject.note("float-zero-points", nodes[0].name, what, bytes_=size)


def unpacked_whole(subject: Subject) -> Iterator[Finding]:
    """Note the MatMulNBits nodes where the target has no kernel that reads codes."""
    nodes = nbits_nodes(subject.model)
    if nodes and subject.target.unpacks:
        size = max(attribute(node, "N", 0) * attribute(node, "K", 0) * 4 for node in nodes)
        what = f"{len(nodes)} MatMulNBits: {subject.target.unpacks}"
        yield subject.note("unpacked", nodes[0].name, what, bytes_=size)
