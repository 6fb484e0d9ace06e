"""Roles and layers told by the network's structure alone.

A transformer is a stream to which blocks add: an attention, a feed-forward network, a short convolution. Each block is
recognised by what stands between its products (see `attention` and `feed_forward`); the order of blocks along their
stream gives the layers. A layer ends where a mixing block follows a feed-forward one, however many there are of each:
encoder-decoder layers have two attentions, sparse ones many feed-forward networks side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.meaning.attention import find_attentions
from onnx_tailor.graph.meaning.dataflow import Flow
from onnx_tailor.graph.meaning.feed_forward import find_experts, find_feed_forwards, find_routers


@dataclass(frozen=True)
class Block:
    """What one branch off the residual stream is made of."""

    roles: dict[ir.Node, str]
    depth: int
    """Products on the longest way to its output."""
    roots: frozenset[ir.Value]
    """Where its stream begins."""
    mixing: bool
    """Whether it mixes positions, as attention and convolution do; otherwise it is a feed-forward network."""


@dataclass(frozen=True)
class Structure:
    """What the structure tells about the products."""

    roles: dict[ir.Node, str]
    groups: dict[ir.Node, tuple[int, int]]
    """(stream, layer) of each product that belongs to a layer; both count from 0."""


def find_structure(flow: Flow, heads: Iterable[ir.Node]) -> Structure:
    """Tell the role and the layer of every product that can be told by structure; `heads` are known already."""
    roles: dict[ir.Node, str] = {}
    blocks = []
    for attention in find_attentions(flow):
        own = {node: role for node, role in attention.roles.items() if node not in roles}
        roles.update(own)
        if own:
            depth = max(flow.depth(node.outputs[0]) for node in own)
            blocks.append(Block(own, depth, flow.roots(attention.query), mixing=True))
    taken = set(roles) | set(heads)
    routers = find_routers(flow, taken)
    taken |= routers
    for network in find_feed_forwards(flow, taken):
        own = network.roles
        if not network.mixing and find_experts(flow, network, routers):
            own = dict.fromkeys(own, "expert")
        roles.update(own)
        blocks.append(Block(own, flow.depth(network.output), flow.roots(network.input), mixing=network.mixing))
    for node in routers:
        product = flow.products[node]
        roles[node] = "router"
        blocks.append(
            Block({node: "router"}, flow.depth(node.outputs[0]), flow.roots(product.activation), mixing=False)
        )
    for head in heads:
        reached = flow.before(flow.products[head].activation)
        nearest = {product.node for product in reached.products} - roles.keys()
        if len(nearest) == len(reached.products) == 1 and not reached.roots:
            roles[nearest.pop()] = "transform"
    return Structure(roles, _layers(flow, blocks))


def _layers(flow: Flow, blocks: list[Block]) -> dict[ir.Node, tuple[int, int]]:
    groups: dict[ir.Node, tuple[int, int]] = {}
    for stream, members in enumerate(_streams(flow, blocks)):
        # Where attention and feed-forward network stand side by side, the attention begins the layer.
        members.sort(key=lambda block: (block.depth, not block.mixing))
        both = len({block.mixing for block in members}) == 2
        layer, fed = 0, False
        for number, block in enumerate(members):
            if (block.mixing and fed) or (not both and number > 0):
                layer += 1
                fed = False
            fed |= not block.mixing
            groups.update(dict.fromkeys(block.roles, (stream, layer)))
    return groups


def _streams(flow: Flow, blocks: list[Block]) -> list[list[Block]]:
    """Part the blocks by their streams: encoder and decoder in one file, or the two branches of a merged decoder."""
    mixing = {node.graph for block in blocks if block.mixing for node in block.roles}
    streams: list[tuple[ir.Graph | None, set[ir.Value], list[Block]]] = []
    for block in blocks:
        graph = next(iter(block.roles)).graph
        inner = graph if isinstance(graph, ir.Graph) else None
        # An expert may lie in an If of its own; the stream is the graph's that holds the attentions.
        level = next((each for each in flow.levels(inner) if each in mixing), inner)
        for other_level, roots, members in streams:
            if other_level is level and (roots & block.roots or roots == block.roots):
                roots.update(block.roots)
                members.append(block)
                break
        else:
            streams.append((level, set(block.roots), [block]))
    return [members for _, _, members in streams]
