"""The passes, by their names in a recipe."""

from collections.abc import Mapping

from onnx_tailor.passes.base import Pass
from onnx_tailor.passes.graphsurgeon import GraphSurgeon
from onnx_tailor.passes.quantize import Quantize
from onnx_tailor.passes.reshape_dim import ReshapeDim
from onnx_tailor.passes.rewrite_rules import RewriteRules
from onnx_tailor.passes.tie_embeddings import TieEmbeddings

PASSES: Mapping[str, type[Pass]] = {
    p.name: p for p in (TieEmbeddings, Quantize, ReshapeDim, GraphSurgeon, RewriteRules)
}
