"""Run recipes that pack and unpack, and compare what they write."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from language_model import run
from onnx import numpy_helper

from onnx_tailor import pipeline, recipe
from onnx_tailor.quant import BlockFormat, quantize

if TYPE_CHECKING:
    from pathlib import Path

    from attention_model import Layer

    from onnx_tailor.report import PassReport

Array = np.ndarray[Any, Any]


def tailor(source: Path, out: Path, *passes: str) -> list[PassReport]:
    file = source.with_name("recipe.yaml")
    file.write_text("recipe: 1\npasses: [" + ", ".join(passes or ("unpack-matmul",)) + "]\n")
    return list(pipeline.run(recipe.load(str(file)), source, out).passes)


def tensors(path: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def same_outputs(layer: Layer, before: Path, after: Path, *, within: float = 0.0) -> None:
    """Compare on a prefill, on a prefill behind a cache, and on one token behind a cache.

    A kernel may add a row's products in another order where the number of rows is no multiple of its tile; sizes as
    real models have them give equal bits.
    """
    for length, past in ((7, 0), (5, 3), (1, 6)):
        if layer.divide == "gqa" and past and length > 1:
            continue  # the operator takes several tokens behind a cache in some builds only
        wanted, found = run(before, layer.feeds(length, past)), run(after, layer.feeds(length, past))
        assert wanted.keys() == found.keys()
        for name, value in wanted.items():
            limit = within * np.abs(value).max(initial=0)
            np.testing.assert_allclose(found[name], value, rtol=0, atol=limit, err_msg=name)


def quantized(layer: Layer, *, symmetric: bool = False) -> Layer:
    fmt = BlockFormat(bits=layer.bits, block_size=layer.block_size, symmetric=symmetric, scale_dtype=layer.dtype)
    values = layer.weights()
    found = {key: quantize(values[key].astype(np.float32), fmt, "rtn") for key in ("qkv", "gate_up")}
    return replace(layer, quantized=found, multiply="nbits")
