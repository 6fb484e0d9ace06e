"""A table and a head that hold the same values in two copies."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_tailor.graph.meaning.heads import Head, find_heads
from onnx_tailor.graph.tables.nbits_weight import blob_of
from onnx_tailor.graph.tables.read_block_table import FoundTable
from onnx_tailor.graph.tables.same_table import same_block_table, same_float_table
from onnx_tailor.graph.tables.token_tables import find_tables
from onnx_tailor.lint.finding import Finding, Mend, Subject
from onnx_tailor.passes.tie_embeddings import Tied, match

_MEND = Mend("tie-embeddings")


def untied(subject: Subject) -> Iterator[Finding]:
    """Compare every table with every head of its shape, float or quantized, and name the copies."""
    tables = find_tables(subject.model)
    heads = [head for head in find_heads(subject.model) if isinstance(head, Head)]
    seen: set[ir.Value] = set()
    for head in heads:
        root = head.projection.weight.root
        found = match(head.projection, tables, force=False) if root not in seen else None
        seen.add(root)  # both branches of an If may read one copy
        saved = found.saved(each.projection.node for each in heads) if isinstance(found, Tied) else 0
        if isinstance(found, Tied) and saved:
            what = f"a second copy of the table {found.kept.name} ({found.proof})"
            yield subject.problem("untied", head.projection.name, what, bytes_=saved, mend=_MEND)
    for table in tables:
        same = same_float_table(subject.heads, table.matrix.view)
        if same is not None and same.rounding.same:
            what = f"the table {table.matrix.name} is the head {same.head} in float ({same.proof})"
            yield subject.problem("untied", table.node.name, what, bytes_=table.matrix.view.nbytes, mend=_MEND)


def own_codes(subject: Subject) -> Iterator[Finding]:
    """Name the quantized tables with bytes of their own that equal a head's."""
    for found in subject.tables:
        if not isinstance(found, FoundTable) or found.layout == "broken":
            continue
        own = blob_of(found.table.codes)
        if own is None or subject.heads.readers_of(found.table.codes):
            continue
        for node, table in subject.heads.like(found.table):
            if same_block_table(found.table, table):
                what = f"its codes are a second copy of those of the head {node.name}"
                yield subject.problem("untied", found.node.name, what, bytes_=own.nbytes, mend=_MEND)
                break
