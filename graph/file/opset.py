"""Raise a model's opset without touching its nodes, where they mean the same in both."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnx_tailor.graph.model import ONNX_DOMAINS, TailorModel
from onnx_tailor.report import Change

_LEAST = 13
"""Below, operators change their inputs (Squeeze, ReduceSum) and their meaning (Softmax) too often."""
_OTHERWISE = frozenset({"AveragePool", "BatchNormalization", "GroupNormalization", "LpPool", "Resize", "Upsample"})
"""Operators whose texts changed while their signatures did not, or that fill in attributes anew."""
_IR_VERSIONS = {21: 10, 23: 11}


def obstacle(model: TailorModel, version: int) -> str | None:
    """Return why the model must not declare opset `version`, or None where it may, or declares as high a one.

    A later version of an operator adds types, optional inputs and attributes whose defaults are the old meaning; a
    node whose signature changed otherwise forbids the change.
    """
    if model.opset >= version:
        return None
    if model.opset < _LEAST:
        return f"its opset is {model.opset}, and from below {_LEAST} to {version} operators change their meaning"
    for node in model.nodes():
        if node.domain in ONNX_DOMAINS:
            changed = _change(node, model.opset, version)
            if changed is not None:
                return f"its opset is {model.opset}, and in {version} {node.op_type} ({node.name}) {changed}"
    return None


def raise_opset(model: TailorModel, version: int) -> Change | None:
    """Declare opset `version`, to which there is no `obstacle`, and its IR version; None if it has as high a one."""
    before = model.opset
    if before >= version:
        return None
    imports = model.ir_model.opset_imports
    for domain in ONNX_DOMAINS:
        if domain in imports:
            imports[domain] = version
    model.ir_model.ir_version = max(model.ir_model.ir_version or 0, _IR_VERSIONS[version])
    return Change(where=model.path.name, what=f"opset {before} -> {version}, as which its nodes mean the same")


def _change(node: ir.Node, old_version: int, new_version: int) -> str | None:
    """Say in what the node would be another one; None where it is the same."""
    try:
        old, new = (onnx.defs.get_schema(node.op_type, version, "") for version in (old_version, new_version))
    except onnx.defs.SchemaError:
        return "does not exist"
    if old.since_version == new.since_version:
        return None
    if node.op_type in _OTHERWISE:
        return "has another meaning"
    if new.deprecated or len(new.inputs) < len(old.inputs):
        return "takes other inputs"
    gone = [name for name in node.attributes if name not in new.attributes]
    if gone:
        return f"has no attribute {gone[0]}"
    for name, attribute in new.attributes.items():
        before = old.attributes.get(name)
        if name in node.attributes:
            continue
        if attribute.required or (before is not None and _default(before) != _default(attribute)):
            return f"takes another {name} where none is given"
    if node.op_type == "Split" and len(node.inputs) < 2 and "num_outputs" not in node.attributes:
        return "wants the number of its parts"
    return None


def _default(attribute: onnx.defs.OpSchema.Attribute) -> bytes:
    return bytes(attribute.default_value.SerializeToString())
