"""The file beside a decoder that turns tokens into its `inputs_embeds`, as vision-language exports have it."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto

from onnx_tailor.errors import ModelError
from onnx_tailor.weights.protobuf import read_skeleton

__all__ = ["INPUT", "embedder_of"]

INPUT = "inputs_embeds"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def embedder_of(decoder: Path) -> Path | None:
    """Return the model in the decoder's folder that takes token ids alone and yields one float tensor, if it is one.

    `embed_tokens` is what transformers.js and optimum call it.
    """
    fitting = [path for path in sorted(decoder.parent.glob("*embed*.onnx")) if path != decoder and _embeds(path)]
    return fitting[0] if len(fitting) == 1 else None


def _embeds(path: Path) -> bool:
    try:
        graph = read_skeleton(path).graph
    except ModelError:  # a file that has nothing to do with the decoder
        return False
    stored = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in stored]
    kinds = [value.type.tensor_type.elem_type for value in graph.output]
    return names == ["input_ids"] and len(kinds) == 1 and kinds[0] in _FLOATS
