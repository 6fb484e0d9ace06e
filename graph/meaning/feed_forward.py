"""The feed-forward networks of a model: the product that leads back to the stream, and those that feed it alone."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.activations import ACTIVATIONS
from onnx_tailor.graph.meaning.dataflow import Flow
from onnx_tailor.graph.meaning.products import Product
from onnx_tailor.graph.model import is_contrib, is_op

_CONVOLUTIONS = frozenset({"Conv", "CausalConvWithState"})


@dataclass(frozen=True)
class FeedForward:
    """down(activation(gate(x)) * up(x)), or a short convolution between two products."""

    roles: dict[ir.Node, str]
    input: ir.Value
    output: ir.Value
    mixing: bool = False
    """Whether it is a convolution, which mixes positions."""


def find_feed_forwards(flow: Flow, taken: set[ir.Node]) -> list[FeedForward]:
    """Return the networks made of products that are not `taken`, in the order of the file."""
    found = []
    used = set(taken)
    for node, product in flow.products.items():
        if node in used:
            continue
        network = _network(flow, product, used)
        if network is not None:
            used |= network.roles.keys()
            found.append(network)
    return found


def find_routers(flow: Flow, taken: set[ir.Node]) -> set[ir.Node]:
    """Return the products whose outputs a TopK ranks, which the heads among `taken` are not, or that an MoE reads."""
    found = set()
    for node in flow.nodes:
        if is_op(node, "TopK"):
            ranked = node.inputs[0]
        elif is_contrib(node, "MoE", "QMoE"):
            ranked = node.inputs[1]
        else:
            continue
        reached = flow.before(ranked) if ranked is not None else None
        if reached is not None and not reached.roots:
            found |= {product.node for product in reached.products if product.node not in taken}
    return found


def find_experts(flow: Flow, network: FeedForward, routers: set[ir.Node]) -> bool:
    """Whether a router's scores scale the network's output."""
    if not routers:
        return False
    reached = flow.after(network.output, stop=lambda node, _: is_op(node, "Add", "Sum"))
    for node in reached.passed:
        if not is_op(node, "Mul", "MatMul", "Einsum"):
            continue
        for value in node.inputs:
            behind = flow.before(value) if value is not None else None
            if behind is not None and not behind.roots and {p.node for p in behind.products} & routers:
                return True
    return False


def _network(flow: Flow, down: Product, used: set[ir.Node]) -> FeedForward | None:
    reached = flow.before(down.activation, most=2)
    if reached.roots or not reached.complete:
        return None
    feeding = {product.node: product for product in reached.products}
    if not 1 <= len(feeding) <= 2 or feeding.keys() & used or down.node in feeding:
        return None
    passed = {node.op_type for node in reached.passed}
    inputs = {product.activation for product in feeding.values()}
    if len(inputs) != 1:
        return None
    source, output = inputs.pop(), down.node.outputs[0]
    if passed & _CONVOLUTIONS:
        roles = dict.fromkeys(feeding, "conv_in") | {down.node: "conv_out"}
        return FeedForward(roles, source, output, mixing=True)
    if not passed & ACTIVATIONS:
        return None
    gated = {node for node, product in feeding.items() if _is_activated(flow, product, down)}
    if len(feeding) == 1:
        (only,) = feeding
        role = "gate_up" if _is_divided(reached.passed) else "up"
        return FeedForward({only: role, down.node: "down"}, source, output)
    if len(gated) != 1:
        return None
    roles = {node: "gate" if node in gated else "up" for node in feeding}
    return FeedForward(roles | {down.node: "down"}, source, output)


def _is_activated(flow: Flow, product: Product, down: Product) -> bool:
    """Whether a product's output passes through an activation before it meets another's in a multiplication."""
    reached = flow.after(product.node.outputs[0], stop=lambda node, _: node is down.node)
    ways = [node for node in reached.passed if node.op_type in ACTIVATIONS]
    for node in ways:
        value = node.inputs[0]
        behind = flow.before(value) if value is not None else None
        if behind is not None and {p.node for p in behind.products} == {product.node}:
            return True
    return False


def _is_divided(passed: list[ir.Node]) -> bool:
    """Whether the output is cut into a gate and an upper half."""
    return any(is_op(node, "Split", "Slice", "Gather", "Chunk") for node in passed)
