"""Functions of a file whose bodies hold what the passes look for: older torch.onnx exports make one of each module."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from onnx_tailor.errors import ModelError, innermost
from onnx_tailor.graph.file.forms import require_forms
from onnx_tailor.graph.model import MICROSOFT
from onnx_tailor.graph.walk import nodes_in

_LOOKED_FOR = frozenset({"MatMul", "Gemm", "FusedMatMul", "Einsum", "MatMulNBits", "Gather", "GatherBlockQuantized"})


def inline_weights(model: ir.Model, path: Path) -> None:
    """Put the bodies of functions that multiply or gather in the place of their calls, those of the others stay.

    A function in ONNX Runtime's own domain stays too: the runtime prefers its kernel to the body.

    Raises:
        ModelError: a call does not fit its function, or a function means another version of the operators.
    """
    wanted = {
        identifier
        for identifier, function in model.functions.items()
        if identifier[0] != MICROSOFT and _holds(model, function, set())
    }
    if not wanted:
        return
    for identifier in wanted:
        _agree_on_versions(model, model.functions[identifier])
    try:
        ir_passes.InlinePass(lambda function: function.identifier() in wanted)(model)
    except Exception as error:  # strangers' calls need not fit
        raise ModelError(
            f"{path}: its functions cannot be put in the place of their calls ({innermost(error)}); export it without"
        ) from error
    require_forms(model.graph, model.opset_imports, path)  # a body may get less from its call than it reads


def _agree_on_versions(model: ir.Model, function: ir.Function) -> None:
    """Let a function import the model's version of operators that mean the same in its own."""
    for domain, own in function.opset_imports.items():
        common = model.opset_imports.get(domain, own)
        used = {
            node.op_type
            for node in nodes_in(function)
            if node.domain == domain and node.op_identifier() not in model.functions  # whose versions say nothing
        }
        if own != common and all(_since(op, own, domain) == _since(op, common, domain) != 0 for op in used):
            function.opset_imports[domain] = common


def _since(op_type: str, version: int, domain: str) -> int:
    """Return the version that brought an operator its present meaning, 0 where onnx does not know it."""
    try:
        return int(onnx.defs.get_schema(op_type, version, domain).since_version)
    except (onnx.defs.SchemaError, TypeError, OverflowError):
        return 0


def _holds(model: ir.Model, function: ir.Function, seen: set[ir.OperatorIdentifier]) -> bool:
    seen.add(function.identifier())
    for node in nodes_in(function):
        if node.op_type in _LOOKED_FOR:
            return True
        inner = model.functions.get(node.op_identifier())
        if inner is not None and inner.identifier() not in seen and _holds(model, inner, seen):
            return True
    return False
