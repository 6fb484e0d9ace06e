"""GraphSurgeon functions as users write them, for test_graphsurgeon.py."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

not_callable = 3


def soft_cap(graph: gs.Graph) -> None:
    """Bound the logits as Gemma 2 does: 30 * tanh(logits / 30)."""
    (logits,) = graph.outputs
    kind = logits.dtype
    inner = gs.Variable("logits_uncapped", dtype=kind)
    logits.inputs[0].outputs = [inner]
    cap = gs.Constant("cap", np.array(30, kind))
    scaled, bounded = gs.Variable("scaled", dtype=kind), gs.Variable("bounded", dtype=kind)
    graph.nodes += [
        gs.Node("Div", inputs=[inner, cap], outputs=[scaled]),
        gs.Node("Tanh", inputs=[scaled], outputs=[bounded]),
        gs.Node("Mul", inputs=[bounded, cap], outputs=[logits]),
    ]
    graph.cleanup().toposort()


def nothing(graph: gs.Graph) -> None:
    """Leave the graph as it is."""


def reads_a_weight(graph: gs.Graph) -> None:
    """Do what would load a weight into memory."""
    next(node for node in graph.nodes if node.op == "MatMul").inputs[1].values.sum()


def fails(graph: gs.Graph) -> None:
    """Raise an error of its own."""
    raise KeyError("no such node")


def adds_a_large_weight(graph: gs.Graph) -> None:
    """Scale the logits by a vector of its own, large enough to be stored outside the ONNX file."""
    (logits,) = graph.outputs
    inner = gs.Variable("logits_unscaled", dtype=logits.dtype)
    logits.inputs[0].outputs = [inner]
    factors = gs.Constant("factors", np.linspace(1, 2, 70, dtype=logits.dtype))
    graph.nodes.append(gs.Node("Mul", inputs=[inner, factors], outputs=[logits]))
    graph.toposort()
