"""Functions of a file whose bodies hold what the passes look for: older torch.onnx exports make one of each module."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from onnx_tailor.graph.model import MICROSOFT

_LOOKED_FOR = frozenset({"MatMul", "Gemm", "FusedMatMul", "Einsum", "MatMulNBits", "Gather", "GatherBlockQuantized"})


def inline_weights(model: ir.Model) -> None:
    """Put the bodies of functions that multiply or gather in the place of their calls, those of the others stay.

    A function in ONNX Runtime's own domain stays too: the runtime prefers its kernel to the body.
    """
    wanted = {
        identifier
        for identifier, function in model.functions.items()
        if identifier[0] != MICROSOFT and _holds(model, function, set())
    }
    if wanted:
        ir_passes.InlinePass(lambda function: function.identifier() in wanted)(model)


def _holds(model: ir.Model, function: ir.Function, seen: set[ir.OperatorIdentifier]) -> bool:
    seen.add(function.identifier())
    for node in ir.traversal.RecursiveGraphIterator(function.graph):
        if node.op_type in _LOOKED_FOR:
            return True
        inner = model.functions.get(node.op_identifier())
        if inner is not None and inner.identifier() not in seen and _holds(model, inner, seen):
            return True
    return False
