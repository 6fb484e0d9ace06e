"""Load a model so that every large weight stays in its file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from onnx_tailor.errors import ModelError, innermost
from onnx_tailor.graph.file.inline import inline_weights
from onnx_tailor.graph.file.modern import free_initializers, make_dense
from onnx_tailor.graph.file.soundness import require_plain, require_sound, require_values
from onnx_tailor.graph.model import TailorModel, is_op
from onnx_tailor.report import Change
from onnx_tailor.weights.files import DataFile, InlineBytes, resolve_location
from onnx_tailor.weights.protobuf import INLINE_LIMIT, read_skeleton
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.view import View


def load(path: Path, open_file: Callable[[Path], DataFile] = DataFile.open) -> TailorModel:
    """Read the graph of the ONNX file at `path`; its weights become `WeightTensor`s over file ranges.

    `open_file` opens its files, where they are not in this machine's file system.

    Raises:
        ModelError: the file or one of its data files is missing, cut off, outside the folder, or no sound ONNX model.
    """
    own = open_file(path)
    proto = read_skeleton(path)
    own.require_unchanged()
    require_plain(proto, path)
    make_dense(proto, path)
    free_initializers(proto)
    changes = tuple(_leave_training_out(proto))
    try:
        with _quiet("onnx_ir.serde"), warnings.catch_warnings(action="ignore"):
            model = ir.from_proto(proto)
    except Exception as error:  # the deserializer meets strangers' files and raises what it likes
        raise ModelError(f"{path}: the graph cannot be read ({innermost(error)})") from error
    sources = _Sources(path, {}, open_file)
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value = sources.tensor(value.const_value)
            if tensor is not None and not value.is_graph_input():  # a value_info may say anything
                value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        for node in graph:
            _replace_attributes(node, sources)
    for function in model.functions.values():
        for node in function:
            _replace_attributes(node, sources)
    require_sound(model, path)
    inline_weights(model, path)
    _remove_unnamed_constants(model)
    # A weight inside a Constant node is a weight like any other. The limit is one of elements, of up to eight bytes.
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=INLINE_LIMIT // 8)(model)
    locations = sorted({str(file.path.relative_to(path.parent)) for file in sources.files.values()})
    files = {file.path: file for file in (own, *sources.files.values())}
    return TailorModel(model, path, tuple(locations), tuple(files.values()), loading=changes)


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Leave out what a library warns of, which is refused soon after, in a sentence."""
    found = logging.getLogger(logger)
    before, found.disabled = found.disabled, True
    try:
        yield
    finally:
        found.disabled = before


def _leave_training_out(model: onnx.ModelProto) -> Iterator[Change]:
    """Remove what tells how to train the model further: no runtime reads it, and it may hold weights of its own."""
    if model.training_info:
        what = "left out, since it speaks of weights as they were; no runtime reads it to run the model"
        yield Change(where="training_info", what=what, details={"entries": len(model.training_info)})
        del model.training_info[:]


def _remove_unnamed_constants(model: ir.Model) -> None:
    """Remove Constants whose value has no name, so that nothing can read it, and no initializer can hold it."""
    for graph in model.graphs():
        for node in list(graph):
            if is_op(node, "Constant") and not node.outputs[0].name and not node.outputs[0].uses():
                graph.remove(node, safe=True)


@dataclass(frozen=True)
class _Sources:
    path: Path
    files: dict[str, DataFile]
    open_file: Callable[[Path], DataFile]

    def tensor(self, tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
        """Return `tensor`, over its file range if it is stored outside the protobuf."""
        if tensor is None:
            return None
        require_values(tensor, self.path)
        if not isinstance(tensor, ir.ExternalTensor):
            return _over_its_bytes(tensor) if _is_large(tensor) else tensor
        name, location = tensor.name or "(no name)", str(tensor.location)
        if tensor.dtype == ir.DataType.STRING:
            raise ModelError(f"{self.path}: weight {name} is text, which cannot lie in a data file")
        if location not in self.files:
            own = location == self.path.name
            file = self.path if own else resolve_location(self.path, location, name)
            self.files[location] = self.open_file(file)
        file_ = self.files[location]
        dims = tuple(tensor.shape.numpy())
        if any(n < 0 for n in dims):
            raise ModelError(f"{self.path}: weight {name} has the negative shape {list(dims)}")
        view = View.contiguous(file_, tensor.offset or 0, tensor.dtype, dims)
        if tensor.length is not None and tensor.length != view.nbytes:
            raise ModelError(
                f"{self.path}: weight {name} is {tensor.dtype}{list(dims)}, {view.nbytes} bytes, but its data entry "
                f"says {tensor.length}"
            )
        if view.offset < 0 or view.offset + view.nbytes > file_.size:
            raise ModelError(
                f"{file_.path}: weight {name} lies at bytes {view.offset} to {view.offset + view.nbytes}, but the file "
                f"has {file_.size}; it is cut off or belongs to another model"
            )
        return _described(WeightTensor.of_view(view, tensor.name), tensor)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= INLINE_LIMIT


def _over_its_bytes(tensor: ir.TensorProtocol) -> WeightTensor:
    """Return a weight that was written value by value, which protobuf has loaded, like any other."""
    view = View.contiguous(InlineBytes(tensor.tobytes()), 0, tensor.dtype, tuple(tensor.shape.numpy()))
    return _described(WeightTensor.of_view(view, tensor.name), tensor)


def _described(weight: WeightTensor, tensor: ir.TensorProtocol) -> WeightTensor:
    weight.doc_string = tensor.doc_string
    weight.metadata_props.update(tensor.metadata_props)
    return weight


def _replace_attributes(node: ir.Node, sources: _Sources) -> None:
    for attribute in list(node.attributes.values()):
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            tensor = sources.tensor(attribute.value)
            if isinstance(tensor, WeightTensor):
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
