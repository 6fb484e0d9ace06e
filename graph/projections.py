"""Projections: the nodes that multiply activations by a constant matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnx_tailor.graph.constants import Matrix, constant_matrix, constant_shape
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute, is_op


@dataclass(frozen=True)
class Projection:
    """output = alpha * activation @ weight.T (+ bias), in whatever form the exporter wrote it."""

    node: ir.Node
    """The MatMul, Gemm, FusedMatMul or Einsum."""
    weight: Matrix
    """The weight as [N, K], whichever way it lies in the file."""
    activation: ir.Value
    """[..., K]"""
    bias: ir.Value | None
    """[N], or None."""
    output: ir.Value
    """[..., N]: the node's output, or that of the Reshape which restores the dimensions around a Gemm."""
    alpha: float = 1.0

    @property
    def name(self) -> str:
        """The node's name, or its weight's where it has none."""
        return self.node.name or self.weight.name


def find_projections(model: TailorModel) -> list[Projection]:
    """Return every projection with a constant weight of two dimensions."""
    found = (match_projection(node) for node in model.nodes())
    return [projection for projection in found if isinstance(projection, Projection)]


def match_projection(node: ir.Node) -> Projection | str | None:
    """Return the projection that `node` is, the reason why a multiplication is none, or None for other nodes."""
    if is_op(node, "MatMul"):
        return _matmul(node, transpose_weight=True)
    if is_op(node, "Gemm"):
        return _gemm(node)
    if node.domain == MICROSOFT and node.op_type == "FusedMatMul":
        odd = [name for name in ("transA", "transBatchA", "transBatchB") if attribute(node, name, 0)]
        if odd:
            return f"FusedMatMul with {', '.join(odd)}"
        return _matmul(node, transpose_weight=not attribute(node, "transB", 0))
    if is_op(node, "Einsum") and len(node.inputs) == 2:
        return _einsum(node)
    return None


def _einsum(node: ir.Node) -> Projection | str:
    """Read an equation such as `bsk,vk->bsv`: the weight second, the activation's last dimension summed over."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    terms, _, result = equation.partition("->")
    activation, _, weight = terms.partition(",")
    leading, summed = activation[:-1], activation[-1:]
    kept = weight.replace(summed, "", 1) if summed else weight
    plain = len(weight) == 2 and len(kept) == 1 and kept.isalpha() and kept not in activation
    if not plain or result != leading + kept or summed in leading:
        return f"Einsum {equation} is no activation [..., K] times a weight of two dimensions"
    return _matmul(node, transpose_weight=weight.index(summed) == 0)


def _matmul(node: ir.Node, *, transpose_weight: bool) -> Projection | str:
    activation, value = node.inputs[0], node.inputs[1]
    matrix = constant_matrix(value)
    if isinstance(matrix, str):
        return f"its second input is no weight: {matrix}"
    assert activation is not None
    weight, alpha = matrix.transpose() if transpose_weight else matrix, _number(node, "alpha")
    return Projection(node, weight, activation, None, node.outputs[0], alpha)


def _gemm(node: ir.Node) -> Projection | str:
    if attribute(node, "transA", 0):
        return "Gemm with transA"
    found = _matmul(node, transpose_weight=not attribute(node, "transB", 0))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if isinstance(found, str) or bias is None:
        return found if isinstance(found, str) else _unwrapped(found)
    if _number(node, "beta") != 1.0:
        return "Gemm with beta"
    shape = constant_shape(bias)
    if shape == (1,) and bias.const_value is not None and not bias.const_value.numpy().any():
        return _unwrapped(found)  # none, as `wrap_gemm` says it below opset 11
    if shape != (found.weight.shape[0],):
        return f"Gemm whose third input is no bias of {found.weight.shape[0]} elements"
    return _unwrapped(replace(found, bias=bias))


def _unwrapped(projection: Projection) -> Projection:
    """Look through the two Reshapes that carry [..., K] over a Gemm, which knows two dimensions only.

    The form is the one `wrap_gemm` writes: the second Reshape's shape is the activation's own with N at its end, so
    the three nodes are exactly one multiplication of [..., K].
    """
    flatten, users = projection.activation.producer(), list(projection.output.uses())
    if not is_op(flatten, "Reshape") or len(users) != 1 or projection.output.is_graph_output():
        return projection
    restore = users[0].node
    if not is_op(restore, "Reshape") or users[0].idx != 0:
        return projection
    assert flatten is not None
    source, join = flatten.inputs[0], restore.inputs[1]
    concat = join.producer() if join is not None else None
    leading = concat.inputs[0].producer() if is_op(concat, "Concat") and concat and concat.inputs[0] else None
    if source is None or not is_op(leading, "Shape") or leading is None or concat is None:
        return projection
    whole = leading.inputs[0] is source and attribute(leading, "start", 0) == 0 and attribute(leading, "end", 0) == -1
    tail = concat.inputs[1].const_value if len(concat.inputs) == 2 and concat.inputs[1] is not None else None
    if not whole or tail is None or tail.numpy().tolist() != [projection.weight.shape[0]]:
        return projection
    return replace(projection, activation=source, output=restore.outputs[0])


def wrap_gemm(model: TailorModel, projection: Projection, table: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Insert `Gemm(activation, table, bias, transB=1)` before the projection's node, for any rank of the activation.

    `table` is [N, K], read as it lies: a Transpose in front of it would be folded by ONNX Runtime into a second copy.
    """
    node, source, name = projection.node, projection.activation, projection.name
    model.retire(node)
    rows, columns = projection.weight.shape
    rank = len(source.shape) if source.shape is not None else None
    gemm_inputs: list[ir.Value | None] = [source, table]
    if projection.bias is not None:
        gemm_inputs.append(projection.bias)
    elif model.opset < 11:  # where a Gemm may not lack its third input
        gemm_inputs.append(model.constant(ir.tensor(np.zeros(1, dtype.numpy())), f"{name}/no_bias"))
    if rank != 2:
        flat = model.int64s([-1, columns], f"{name}/flat_shape")
        gemm_inputs[0] = model.insert_before(node, "Reshape", [source, flat], name=f"{name}/flatten", dtype=dtype)
    attributes: dict[str, int | float] = {"transB": 1}
    if projection.alpha != 1.0:
        attributes["alpha"] = projection.alpha
    result = model.insert_before(node, "Gemm", gemm_inputs, attributes=dict(attributes), name=name, dtype=dtype)
    made = result.producer()
    assert made is not None
    made.metadata_props.update(node.metadata_props)
    if rank == 2:
        return result
    leading = leading_shape(model, node, source, name)
    tail = model.int64s([rows], f"{name}/columns")
    shape = model.insert_before(
        node, "Concat", [leading, tail], attributes={"axis": 0}, name=f"{name}/shape", dtype=ir.DataType.INT64
    )
    return model.insert_before(node, "Reshape", [result, shape], name=f"{name}/restore", dtype=dtype)


def leading_shape(model: TailorModel, anchor: ir.Node, source: ir.Value, name: str) -> ir.Value:
    """Insert nodes that compute all but the last dimension of `source`."""
    integers = ir.DataType.INT64
    if model.opset >= 15:
        attributes: dict[str, int | float | str | list[int]] = {"start": 0, "end": -1}
        return model.insert_before(
            anchor, "Shape", [source], attributes=dict(attributes), name=f"{name}/leading", dtype=integers
        )
    whole = model.insert_before(anchor, "Shape", [source], name=f"{name}/dimensions", dtype=integers)
    if model.opset < 10:
        bound: dict[str, list[int]] = {"starts": [0], "ends": [-1], "axes": [0]}
        return model.insert_before(
            anchor, "Slice", [whole], attributes=dict(bound), name=f"{name}/leading", dtype=integers
        )
    bounds = [model.int64s([n], f"{name}/{what}") for what, n in (("begin", 0), ("end", -1), ("axis", 0))]
    return model.insert_before(anchor, "Slice", [whole, *bounds], name=f"{name}/leading", dtype=integers)


def scaled(model: TailorModel, projection: Projection, product: ir.Value, name: str) -> ir.Value:
    """Return `product`, activation @ weight.T, times the projection's alpha."""
    if projection.alpha == 1.0:
        return product
    assert product.dtype is not None
    alpha = model.constant(ir.tensor([projection.alpha], product.dtype), f"{name}/alpha")
    return model.insert_before(projection.node, "Mul", [product, alpha], name=f"{name}/scaled", dtype=product.dtype)


def _number(node: ir.Node, name: str) -> float:
    found = node.attributes.get(name)
    return 1.0 if found is None else float(found.value)
