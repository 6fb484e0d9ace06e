"""Write a model: its graph in the ONNX file, its weights where the storage plan puts them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.size import weight_tensors
from onnx_tailor.progress import Progress
from onnx_tailor.weights.plan import Plan, plan
from onnx_tailor.weights.protobuf import INLINE_LIMIT
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.writer import write


def storage_plan(model: TailorModel) -> Plan:
    """Place every weight that is too large for the ONNX file itself."""
    return plan(value.const_value for value in weight_tensors(model) if _is_external(value))  # type: ignore[misc]


def save(model: TailorModel, folder: Path, progress: Progress, finish: Callable[[], None] = lambda: None) -> list[str]:
    """Write the model into `folder` under its own name; return the names of the files.

    `finish` is called when the weights are written, before the graph is: the last moment to edit its metadata.

    Raises:
        ModelError: a weight cannot be read or computed, or the graph is too large for one protobuf.
        OSError: a file cannot be written.
    """
    storage = storage_plan(model)
    data = data_name(model)
    files = [model.path.name]
    if storage.offsets:
        write(storage, folder / data, progress)
        files.append(data)
    finish()
    proto = _to_proto(model, storage, data)
    try:
        content = proto.SerializeToString()
    except ValueError as error:
        raise ModelError(f"{model.path}: the graph without its weights is larger than protobuf's 2 GB") from error
    with (folder / model.path.name).open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return files


def data_name(model: TailorModel) -> str:
    """Return the name of the data file: the input's own where it had exactly one beside the ONNX file."""
    others = [name for name in model.locations if name != model.path.name]
    if len(others) == 1 and Path(others[0]).name == others[0]:
        return others[0]
    return f"{model.path.name}.data"


def _is_external(value: ir.Value) -> bool:
    tensor = value.const_value
    return isinstance(tensor, WeightTensor) and tensor.nbytes >= INLINE_LIMIT


def _to_proto(model: TailorModel, storage: Plan, data: str) -> onnx.ModelProto:
    kept: list[tuple[ir.Value, WeightTensor]] = []
    for value in weight_tensors(model):
        tensor = value.const_value
        if isinstance(tensor, WeightTensor) and _is_external(value):
            kept.append((value, tensor))
            value.const_value = ir.ExternalTensor(
                data,
                storage.offsets[tensor.blob],
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.dims),
                name=value.name or "",
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )
    try:
        return ir.to_proto(model.ir_model)
    finally:
        for value, tensor in kept:
            value.const_value = tensor
