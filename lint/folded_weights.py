"""Reshape, Transpose and Cast nodes on a weight, which ONNX Runtime folds at load into a second copy in memory."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_tailor.graph.file.size import weight_tensors
from onnx_tailor.graph.meaning.heads import head_nodes
from onnx_tailor.graph.model import MICROSOFT, is_op
from onnx_tailor.graph.tables.token_tables import find_tables
from onnx_tailor.lint.finding import Finding, Mend, Subject
from onnx_tailor.weights.tensors import Blob, WeightTensor

_SMALL = 1024
"""Bytes below which a copy is not worth a word."""


def second_copies(subject: Subject) -> Iterator[Finding]:
    """Name the weights that are read folded and as they lie, so that both copies stay in memory."""
    readers: dict[Blob, set[ir.Node]] = {}
    for value in weight_tensors(subject.model):
        if isinstance(value.const_value, WeightTensor):
            readers.setdefault(value.const_value.blob, set()).update(use.node for use in value.uses())
    for blob, nodes in readers.items():
        folded = [
            node
            for node in nodes
            if is_op(node, "Reshape", "Transpose", "Cast")
            and _is_first(node, blob)
            and not (subject.target.repacks and _feeds_products(node))
            and not _widens_scales(node)
        ]
        if not folded or len(nodes) == 1 or blob.nbytes < _SMALL:
            continue
        for node in sorted(folded, key=lambda n: n.name or ""):
            weight = node.inputs[0]
            assert weight is not None
            size = _folded_bytes(node, blob)
            what = f"{node.op_type} of {weight.name}, which others read as it lies: ONNX Runtime keeps both in memory"
            yield subject.problem("second-copy", node.name, what, bytes_=size, mend=_mend(subject, node))


def _feeds_products(node: ir.Node) -> bool:
    """Whether only products by the folded weight read it, which a CPU repacks and then lets go of."""
    uses = list(node.outputs[0].uses())
    return bool(uses) and all(is_op(use.node, "MatMul", "Gemm") and use.idx == 1 for use in uses)


def _widens_scales(node: ir.Node) -> bool:
    """Whether these are scales that were stored in a narrower type on purpose; see `graph.tables.scales`."""
    uses = list(node.outputs[0].uses())
    return is_op(node, "Cast") and bool(uses) and all(use.node.domain == MICROSOFT and use.idx == 2 for use in uses)


def _is_first(node: ir.Node, blob: Blob) -> bool:
    tensor = node.inputs[0].const_value if node.inputs[0] is not None else None
    return isinstance(tensor, WeightTensor) and tensor.blob == blob


def _folded_bytes(node: ir.Node, blob: Blob) -> int:
    if node.op_type != "Cast" or node.inputs[0] is None or node.inputs[0].dtype is None:
        return blob.nbytes
    to = ir.DataType(int(node.attributes["to"].value))
    return int(blob.nbytes / node.inputs[0].dtype.itemsize * to.itemsize)


def _mend(subject: Subject, node: ir.Node) -> Mend | None:
    """Return the pass that knows this form: the table's and the head's."""
    users = [use.node for use in node.outputs[0].uses()]
    if any(user.domain == MICROSOFT and user.op_type == "GatherBlockQuantized" for user in users):
        return Mend("reshape-dim")
    vocabulary = {*head_nodes(subject.model), *(table.node for table in find_tables(subject.model))}
    return Mend("tie-embeddings") if vocabulary.intersection(users) else None
