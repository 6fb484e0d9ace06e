"""GatherBlockQuantized nodes that are not written as they are meant, or whose meaning is not certain."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_tailor.graph.model import attribute
from onnx_tailor.graph.tables.read_block_table import FoundTable, Unread
from onnx_tailor.graph.tables.scales import stored_scales
from onnx_tailor.lint.finding import Finding, Mend, Subject


def faults(subject: Subject) -> Iterator[Finding]:
    """Name missing and wrong attributes, shapes of other bits, data that are none."""
    for found in subject.tables:
        if isinstance(found, FoundTable):
            for fault in found.faults:
                yield subject.problem("broken-table", found.node.name, fault, mend=Mend("reshape-dim"))


def unclear(subject: Subject) -> Iterator[Finding]:
    """Name what cannot be read, and rows that end inside a block, which some kernels compute wrongly."""
    for found in subject.tables:
        if not isinstance(found, Unread):
            continue
        if not is_ragged(found):
            yield subject.problem("unclear-table", found.node.name, found.reason)
        elif subject.target.ragged_rows:
            what = f"its rows end inside a block: {subject.target.ragged_rows}"
            yield subject.problem("ragged-rows", found.node.name, what)


def is_ragged(found: Unread) -> bool:
    """Whether the node is right but for rows that are no whole number of blocks, which only a CPU computes rightly."""
    node = found.node
    if len(node.inputs) < 3 or node.inputs[0] is None or node.inputs[2] is None:
        return False
    stored = stored_scales(node.inputs[2])
    data, scales = node.inputs[0].const_value, stored.const_value if stored is not None else None
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 128)
    if data is None or scales is None or bits not in {2, 4, 8} or len(data.shape) != 2 or str(data.dtype) != "UINT8":
        return False
    rows, row_bytes = (int(n) for n in data.shape.numpy())
    columns = row_bytes * 8 // bits
    return columns % block != 0 and list(scales.shape.numpy()) == [rows, -(-columns // block)]
