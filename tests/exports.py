"""Real exports from tests/fixtures/exports: the exporters' graphs, with random weights written beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

if TYPE_CHECKING:
    import numpy.typing as npt

_FOLDER = Path(__file__).parent / "fixtures" / "exports"


def exported(name: str, folder: Path) -> Path:
    """Write the export `name` with weights of its shapes into `folder` and return the model's path."""
    model = onnx.load(_FOLDER / f"{name}.onnx", load_external_data=False)
    random = np.random.default_rng(17)
    with (folder / "weights.bin").open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor.external_data:
                values = random.standard_normal(math.prod(tensor.dims), np.float32) / 16
                file.write(values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).tobytes())
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def feeds(path: Path, length: int, past: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Return inputs of an exported decoder for `length` tokens behind `past` ones."""
    random = np.random.default_rng(19)
    found: dict[str, npt.NDArray[Any]] = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        kind = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if value.name == "input_ids":
            found[value.name] = random.integers(0, 1000, (1, length), np.int64)
        elif value.name == "attention_mask":
            found[value.name] = np.ones((1, past + length), np.int64)
        elif value.name == "position_ids":
            found[value.name] = np.arange(past, past + length, dtype=np.int64)[None]
        else:
            heads, size = (kind.shape.dim[i].dim_value for i in (1, 3))
            cache = random.standard_normal((1, heads, past, size or 64), np.float32) / 4
            found[value.name] = cache.astype(dtype)
    return found
