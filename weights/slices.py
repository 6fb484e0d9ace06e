"""Parts of a stored tensor, as ranges of the same file: no byte is read or copied here."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from onnx_tailor.weights.jobs import Job
from onnx_tailor.weights.tensors import Blob, WeightTensor


@runtime_checkable
class Divisible(Protocol):
    """A job that computes each row of its matrix from that row alone."""

    def rows(self, start: int, stop: int) -> Job:
        """Return the job whose outputs are this one's for the rows `start` to `stop`, bit for bit."""


def take(tensor: ir.TensorProtocol, axis: int, size: int, start: int, stop: int) -> ir.TensorProtocol | str:
    """Return the elements `start` to `stop` of the `size` along `axis`.

    A tensor without that dimension is taken for the flat form of a matrix of `size` rows, as MatMulNBits allows it for
    scales and zero points; the result is flat as well.

    Returns:
        A tensor, or the reason why there is none: a clause such as "its rows do not begin at whole bytes".
    """
    dims = tuple(int(n) for n in tensor.shape.numpy())
    flat = len(dims) <= axis or dims[axis] != size
    if flat and (axis != 0 or len(dims) != 1 or dims[0] % size):
        return f"it has the shape {list(dims)}, which holds no {size} rows of one length"
    whole = (size, dims[0] // size) if flat else dims
    shape = (stop - start, *whole[1:]) if axis == 0 else (*whole[:axis], stop - start, *whole[axis + 1 :])
    part = _rows(tensor, whole, start, stop) if axis == 0 else _columns(tensor, start, stop)
    if isinstance(part, str) or not flat:
        return part
    length = math.prod(shape)
    return part.reshaped((length,), "") if isinstance(part, WeightTensor) else ir.tensor(part.numpy().reshape(length))


def _rows(tensor: ir.TensorProtocol, whole: tuple[int, ...], start: int, stop: int) -> ir.TensorProtocol | str:
    if not isinstance(tensor, WeightTensor):
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().reshape(whole)[start:stop]), dtype=tensor.dtype)
    row_bits = tensor.dtype.bitwidth * math.prod(whole[1:])
    if row_bits * start % 8 or row_bits * stop % 8:
        return "its rows do not begin at whole bytes"
    if tensor.view is not None:
        view = tensor.view if tensor.dims == whole else tensor.reshaped(whole, "").view
        return WeightTensor.of_view(view.rows(start, stop)) if view is not None else "its rows lie apart in the file"
    job = tensor.blob.job
    if not isinstance(job, Divisible):
        return "an earlier pass computes it in one piece"
    return WeightTensor(Blob(job.rows(start, stop), tensor.blob.output), tensor.dtype, (stop - start, *whole[1:]))


def _columns(tensor: ir.TensorProtocol, start: int, stop: int) -> ir.TensorProtocol | str:
    if not isinstance(tensor, WeightTensor):
        return ir.Tensor(np.ascontiguousarray(tensor.numpy()[:, start:stop]), dtype=tensor.dtype)
    if tensor.view is None:
        return "an earlier pass computes it in one piece"
    if tensor.dtype.bitwidth % 8:
        return f"it is {tensor.dtype}, whose elements share bytes"
    return WeightTensor.of_view(tensor.view.transpose().rows(start, stop).transpose())
