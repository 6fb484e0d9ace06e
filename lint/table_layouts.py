"""Quantized tables whose layout the target refuses, computes wrongly or holds twice."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_tailor.graph.tables.block_table import tensor_of
from onnx_tailor.graph.tables.read_block_table import FoundTable
from onnx_tailor.lint.finding import Finding, Mend, Subject

_MEND = Mend("reshape-dim")


def wrong_layout(subject: Subject) -> Iterator[Finding]:
    """Name the layouts that the target's kernels refuse or compute wrongly: odd packed zero points, no kernel."""
    for found in subject.tables:
        if not isinstance(found, FoundTable) or found.layout == "broken":
            continue
        why = subject.target.objection(found.layout, found.table.form)
        if why is not None:
            yield subject.problem("table-layout", found.node.name, f"layout {found.layout}: {why}", mend=_MEND)


def device_copies(subject: Subject) -> Iterator[Finding]:
    """Name the aliases that a device with memory of its own is sent twice."""
    for found in subject.tables:
        if not isinstance(found, FoundTable) or found.layout != "alias" or not subject.target.one_copy:
            continue
        if subject.heads.readers_of(found.table.codes):
            size = tensor_of(found.table.codes).nbytes
            what = "its codes are an initializer of their own on the head's bytes, which the device is sent twice"
            yield subject.problem("device-copy", found.node.name, what, bytes_=size, mend=_MEND)
