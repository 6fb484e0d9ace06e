"""Quantized operators in a form for which the target has no kernel, or has one only from some release on."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_tailor.graph.constants import FLOATS
from onnx_tailor.graph.model import MICROSOFT, attribute
from onnx_tailor.graph.tables.nbits_weight import has_float_points
from onnx_tailor.graph.tables.scales import read_type
from onnx_tailor.lint.finding import Finding, Subject
from onnx_tailor.targets import Kernel

_OPERATORS = ("MatMulNBits", "GatherBlockQuantized")


def refused(subject: Subject) -> Iterator[Finding]:
    """Name the types, bits and inputs that no kernel of the target takes."""
    for node in _nodes(subject):
        for kernel in subject.target.kernels_of(node.op_type):
            why = _objection(node, kernel)
            if why is not None:
                yield subject.problem("no-kernel", node.name, f"{node.op_type} {why} ({kernel.source})")
                break


def releases(subject: Subject) -> Iterator[Finding]:
    """Note the first release of ONNX Runtime that runs all quantized operators of the file."""
    needs = [
        (kernel.since[bits], f"{node.op_type} with {bits} bits", node.name)
        for node in _nodes(subject)
        for kernel in subject.target.kernels_of(node.op_type)
        if (bits := attribute(node, "bits", 4)) in kernel.since
    ]
    if needs:
        since, what, where = max(needs, key=lambda need: need[0])
        release = ".".join(str(part) for part in since)
        yield subject.note("release", where, f"{what} needs ONNX Runtime {release} or newer on {subject.target.name}")
    for node in _nodes(subject, "GatherBlockQuantized"):
        if subject.target.old_default and (len(node.inputs) < 4 or node.inputs[3] is None):
            yield subject.note("release", node.name, f"no zero points: {subject.target.old_default}")


def padded_columns(subject: Subject) -> Iterator[Finding]:
    """Note the products whose columns do not fill whole blocks, where a build of the target computes those wrongly."""
    why = subject.target.padded_columns
    padded = [
        node
        for node in _nodes(subject, "MatMulNBits")
        if why and attribute(node, "K", 0) % max(1, attribute(node, "block_size", 32))
    ]
    if padded:
        first = padded[0]
        form = f"{attribute(first, 'K', 0)} columns in blocks of {attribute(first, 'block_size', 32)}"
        what = f"{form}: {why} ({len(padded)} of the file's MatMulNBits)"
        yield subject.note("padded-columns", first.name, what)


def bfloat16(subject: Subject) -> Iterator[Finding]:
    """Name the bfloat16 weights of a target that multiplies none."""
    if subject.target.bfloat16:
        return
    found = [(value, tensor) for value, tensor in subject.weights if tensor.dtype == ir.DataType.BFLOAT16]
    if found:
        size = sum(tensor.nbytes for _, tensor in found)
        what = f"{len(found)} weights are bfloat16, for which {subject.target.name} has few kernels; export in float16"
        yield subject.problem("bfloat16", found[0][0].name, what, bytes_=size)


def _nodes(subject: Subject, *operators: str) -> list[ir.Node]:
    wanted = operators or _OPERATORS
    return [node for node in subject.model.nodes() if node.domain == MICROSOFT and node.op_type in wanted]


def _objection(node: ir.Node, kernel: Kernel) -> str | None:
    if not kernel.dtypes:
        return None  # said of the layout, with the mend
    bits, scales = attribute(node, "bits", 4), node.inputs[2] if len(node.inputs) > 2 else None
    if bits not in kernel.since:
        return f"with {bits} bits has no kernel, only with {' and '.join(str(n) for n in kernel.bits)}"
    dtype = read_type(scales) if scales is not None else None
    names = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
    if dtype in FLOATS and names[dtype] not in kernel.dtypes:
        return f"in {names[dtype]} has no kernel, only in {' and '.join(kernel.dtypes)}"
    if node.op_type != "MatMulNBits":
        return None
    if not kernel.bias and len(node.inputs) > 5 and node.inputs[5] is not None:
        return "with a bias has no kernel"
    if bits not in kernel.float_points and has_float_points(node):
        return f"with float zero points of {bits} bits has no kernel"
    return None
