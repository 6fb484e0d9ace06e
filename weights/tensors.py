"""Tensors of the graph whose bytes are still in a file, or not yet computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_tailor.weights.files import InlineBytes
from onnx_tailor.weights.jobs import CopyJob, Job
from onnx_tailor.weights.view import View, Window, as_bytes, packed_bytes


@dataclass(frozen=True)
class Blob:
    """One output of a job: a run of bytes that is stored once, however many tensors read it."""

    job: Job
    output: str

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.job.outputs[self.output]

    def materialize(self) -> npt.NDArray[np.uint8]:
        """Compute all bytes in memory; for small tensors."""
        result = np.empty(self.nbytes, np.uint8)
        for tile in self.job.tiles():
            for _, offset, piece in self.job.compute(tile, frozenset({self.output})):
                raw = piece.reshape(-1).view(np.uint8)
                result[offset : offset + len(raw)] = raw
        return result


class WeightTensor(ir.TensorProtocol):
    """A tensor over a blob. Several tensors may read one blob under different shapes: an alias on disk."""

    def __init__(self, blob: Blob, dtype: ir.DataType, shape: tuple[int, ...], name: str | None = None) -> None:
        """Check that the shape fits the blob."""
        if packed_bytes(math.prod(shape), dtype) != blob.nbytes:
            raise ValueError(f"{name}: {dtype}{list(shape)} does not fit {blob.nbytes} bytes")
        self.blob = blob
        self.dtype = dtype
        self.shape = ir.Shape(shape)
        self.dims = shape
        """The shape as integers."""
        self.name = name
        self.doc_string: str | None = None
        self.metadata_props: dict[str, str] = {}
        self.meta: dict[str, object] = {}

    @classmethod
    def of_view(cls, view: Window, name: str | None = None) -> WeightTensor:
        """Return the tensor of a view's elements."""
        return cls(Blob(CopyJob(as_bytes(view)), "data"), view.dtype, view.shape, name)

    @classmethod
    def of_value(cls, value: ir.Value) -> WeightTensor | None:
        """Return the weight behind an initializer, also one so small that it lies inside the ONNX file, or None.

        A value that callers can feed is no weight, whatever it defaults to.
        """
        tensor = value.const_value
        if value.is_graph_input() or not value.is_initializer() or tensor is None or tensor.dtype == ir.DataType.STRING:
            return None
        if not isinstance(tensor, cls):
            dims = tuple(tensor.shape.numpy())
            view = View.contiguous(InlineBytes(tensor.tobytes()), 0, tensor.dtype, dims)
            value.const_value = tensor = cls.of_view(view, value.name)
        return tensor

    @property
    def view(self) -> Window | None:
        """The view that holds this tensor's elements; None where they have to be computed."""
        job = self.blob.job
        if not isinstance(job, CopyJob):
            return None
        if isinstance(job.view, View) and job.view.is_contiguous:
            return View.contiguous(job.view.file, job.view.offset, self.dtype, self.dims)
        return job.view if job.view.shape == self.dims else None

    def reshaped(self, shape: tuple[int, ...], name: str) -> WeightTensor:
        """Return a tensor of the same bytes under another shape and name."""
        return WeightTensor(self.blob, self.dtype, shape, name)

    def renamed(self, name: str) -> WeightTensor:
        """Return the same tensor under another name."""
        return WeightTensor(self.blob, self.dtype, self.dims, name)

    @property
    def raw(self) -> Blob:
        """The blob."""
        return self.blob

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes when stored."""
        return self.blob.nbytes

    def numpy(self) -> npt.NDArray[np.generic]:
        """Compute or read the values; for small tensors."""
        raw = self.blob.materialize()
        if self.dtype.bitwidth < 8:
            return ir.PackedTensor(raw, self.dtype, shape=self.shape).numpy()
        return raw.view(self.dtype.numpy()).reshape(self.dims)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        """Compute or read the values; for small tensors."""
        return np.asarray(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, *, stream: object = None) -> object:
        """Compute or read the values; for small tensors."""
        values: Any = self.numpy()
        return values.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the device of `__dlpack__`."""
        return self.numpy().__dlpack_device__()

    def tobytes(self) -> bytes:
        """Compute or read the little-endian bytes; for small tensors."""
        return self.blob.materialize().tobytes()

    def __repr__(self) -> str:
        """Show the name, dtype and shape, never the values."""
        return f"WeightTensor({self.name}: {self.dtype}{list(self.dims)})"
