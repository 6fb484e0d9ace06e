"""The passes, by their names in a recipe: our own, and those of other installed packages."""

from collections.abc import Mapping

from onnx_tailor.passes.accuracy_level import AccuracyLevel
from onnx_tailor.passes.base import Pass
from onnx_tailor.passes.graphsurgeon import GraphSurgeon
from onnx_tailor.passes.pack_matmul import PackMatMul
from onnx_tailor.passes.plugins import discover
from onnx_tailor.passes.quantize import Quantize
from onnx_tailor.passes.reshape_dim import ReshapeDim
from onnx_tailor.passes.rewrite_rules import RewriteRules
from onnx_tailor.passes.tie_embeddings import TieEmbeddings
from onnx_tailor.passes.unpack_matmul import UnpackMatMul

_OWN: tuple[type[Pass], ...] = (
    UnpackMatMul,
    PackMatMul,
    TieEmbeddings,
    Quantize,
    AccuracyLevel,
    ReshapeDim,
    GraphSurgeon,
    RewriteRules,
)
OWN: Mapping[str, type[Pass]] = {p.name: p for p in _OWN}
_OTHERS, BROKEN = discover(OWN)
"""`BROKEN`: why an installed package's pass cannot be had, by its name."""
PASSES: Mapping[str, type[Pass]] = {**OWN, **_OTHERS}

__all__ = [
    "BROKEN",
    "OWN",
    "PASSES",
    "AccuracyLevel",
    "GraphSurgeon",
    "PackMatMul",
    "Pass",
    "Quantize",
    "ReshapeDim",
    "RewriteRules",
    "TieEmbeddings",
    "UnpackMatMul",
]
