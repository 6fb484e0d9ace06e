"""What an exporter wrote down about the sizes of intermediate values, and ONNX Runtime believes.

ONNX Runtime lets two values share a buffer where their shapes carry the same names. The GenAI model builder (0.18)
calls the length of repeated keys `sequence_length`, as the new tokens' is called, although it is that of the whole
cache: as long as a kernel of another type stands between, nobody notices; once the planner pairs the two, a decode
step fails. So a rewritten graph keeps no names but those of its inputs and outputs; the runtime infers the others.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_tailor.graph.model import TailorModel


def forget_named_sizes(model: TailorModel) -> int:
    """Make the named dimensions of intermediate values unknown; ranks and numbers stay. Return how many values."""
    count = 0
    for graph in model.graphs():
        kept = set(graph.outputs)
        for node in graph:
            for value in node.outputs:
                if value in kept or value.shape is None or value.shape.is_static():
                    continue
                dims = [dim if isinstance(dim, int) else None for dim in value.shape]
                if any(isinstance(dim, ir.SymbolicDim) and dim.value is not None for dim in value.shape):
                    value.shape = ir.Shape(dims)
                    count += 1
    return count
