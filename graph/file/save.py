"""Write models: each graph in its ONNX file, all weights where the storage plan puts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import onnx
import onnx_ir as ir
import onnx_ir.serde  # the package leaves it out

from onnx_tailor.errors import ModelError, UsageError, innermost
from onnx_tailor.graph.file.size import weight_tensors
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.weights.equal import share_equal
from onnx_tailor.weights.plan import Plan, plan
from onnx_tailor.weights.protobuf import INLINE_LIMIT
from onnx_tailor.weights.tensors import WeightTensor

SET_DATA = "weights.data"
"""Name of the data file that the models of a set share."""


@dataclass(frozen=True)
class Storage:
    """Where everything that a run writes will lie."""

    plan: Plan
    stores: tuple[str, ...]
    """For each model, the store of its weights: the name of its first data file."""


def plan_storage(
    models: Sequence[TailorModel],
    *,
    per_model: bool = False,
    max_file: int | None = None,
    stores: tuple[str, ...] | None = None,
) -> Storage:
    """Place every weight that is too large for the ONNX files themselves, equal ones on the same bytes.

    The models of a set share one store, unless `per_model`; or `stores` names one for each model. No file becomes
    larger than `max_file` bytes.

    Raises:
        ModelError: a weight cannot be read.
        UsageError: one weight alone is larger than `max_file`, or two files would have one name.
    """
    stores = stores or _stores(models, per_model=per_model)
    tensors: dict[str, list[WeightTensor]] = {store: [] for store in stores}
    for model, store in zip(models, stores, strict=True):
        tensors[store] += outside(model)
    share_equal(tensor for each in tensors.values() for tensor in each)
    found = plan(tensors, max_file)
    taken = {model.file_name for model in models} & set(found.files)
    if taken:
        raise UsageError(f"{min(taken)}: is the name of an ONNX file and of its weights; rename the model")
    return Storage(found, stores)


def outside(model: TailorModel) -> list[WeightTensor]:
    """Return the weights of a model that are too large for its ONNX file."""
    tensors = (value.const_value for value in weight_tensors(model) if _is_outside(value))
    return [tensor for tensor in tensors if isinstance(tensor, WeightTensor)]


def graph_bytes(model: TailorModel, storage: Storage, store: str) -> int:
    """Return how large the ONNX file will be; computes no weight."""
    return _to_proto(model, storage.plan, store, hold_weights=False).ByteSize()


def write_graph(model: TailorModel, storage: Storage, store: str, folder: Path) -> None:
    """Write the ONNX file into `folder`, without flushing it to the disk.

    Raises:
        ModelError: the graph is too large for one protobuf.
        OSError: the file cannot be written.
    """
    proto = _to_proto(model, storage.plan, store)
    try:
        content = proto.SerializeToString(deterministic=True)
    except ValueError as error:
        raise ModelError(f"{model.path}: the graph without its weights is larger than protobuf's 2 GB") from error
    (folder / model.file_name).write_bytes(content)


def _stores(models: Sequence[TailorModel], *, per_model: bool) -> tuple[str, ...]:
    """Name the data file of each model."""
    stores = tuple(_store(model) for model in models)
    if len(models) > 1 and (not per_model or len(set(stores)) < len(stores)):
        return tuple(f"{model.file_name}.data" if per_model else _common(stores) for model in models)
    return stores


def _store(model: TailorModel) -> str:
    """Return the name of a model's data file: the input's own where it had exactly one beside the ONNX file."""
    others = [name for name in model.locations if name != model.path.name]
    if len(others) == 1 and PurePath(others[0]).name == others[0]:
        return others[0]
    return f"{model.file_name}.data"


def _common(stores: Sequence[str]) -> str:
    """Return the data file that all models have in common already, or the name for one."""
    return stores[0] if len(set(stores)) == 1 else SET_DATA


def _is_outside(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < INLINE_LIMIT:
        return False
    # What a pass made in memory, or the protobuf held as single values, would count against its 2 GB.
    return isinstance(tensor, WeightTensor) or WeightTensor.of_value(value) is not None


def _to_proto(model: TailorModel, storage: Plan, store: str, *, hold_weights: bool = True) -> onnx.ModelProto:
    """Return the model with references to the weights outside, and zeros for the others unless `hold_weights`."""
    kept: list[tuple[ir.Value, WeightTensor]] = []
    try:
        for value in weight_tensors(model):
            tensor = value.const_value
            if not isinstance(tensor, WeightTensor):
                continue
            kept.append((value, tensor))
            if _is_outside(value):
                place = storage.of(store, tensor)
                value.const_value = _reference(tensor, value.name, place.file, place.offset)
            else:  # here rather than in the serializer, which would wrap what is said of a weight that is not finite
                content = tensor.tobytes() if hold_weights else bytes(tensor.nbytes)
                value.const_value = _inside(tensor, value.name, content)
        return ir.to_proto(model.ir_model)
    except ir.serde.SerdeError as error:
        raise ModelError(f"{model.path}: the graph cannot be written ({innermost(error)})") from error
    finally:
        for value, tensor in kept:
            value.const_value = tensor


def _reference(tensor: WeightTensor, name: str | None, file: str, offset: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        file,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.dims),
        name=name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _inside(tensor: WeightTensor, name: str | None, content: bytes) -> ir.TensorProtoTensor:
    proto = onnx.TensorProto(name=name or "", data_type=tensor.dtype, dims=tensor.dims, raw_data=content)
    proto.doc_string = tensor.doc_string or ""
    return ir.TensorProtoTensor(proto)
