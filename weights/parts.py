"""Parts of stored tensors, and stored tensors put together, as ranges of the same files: no byte is read here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from onnx_tailor.weights.jobs import Job
from onnx_tailor.weights.joined import join
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.tensors import Blob, WeightTensor


@runtime_checkable
class Divisible(Protocol):
    """A job that computes each row of its matrix from that row alone."""

    def rows(self, start: int, stop: int) -> Job:
        """Return the job whose outputs are this one's for the rows `start` to `stop`, bit for bit."""


def take(tensor: WeightTensor, axis: int, size: int, start: int, stop: int) -> WeightTensor | str:
    """Return the elements `start` to `stop` of the `size` along `axis`.

    A tensor without that dimension is taken for the flat form of a matrix of `size` rows, as MatMulNBits allows it for
    scales and zero points; the result is flat as well.

    Returns:
        A tensor, or the reason why there is none: a clause such as "its rows do not begin at whole bytes".
    """
    dims = tensor.dims
    flat = len(dims) <= axis or dims[axis] != size
    if flat and (axis != 0 or len(dims) != 1 or dims[0] % size):
        return f"it has the shape {list(dims)}, which holds no {size} rows of one length"
    if not flat and math.prod(dims[:axis]) != 1:
        return _columns(tensor, start, stop)
    row = (dims[0] // size,) if flat else dims[axis + 1 :]
    shape = ((stop - start) * row[0],) if flat else (*dims[:axis], stop - start, *row)
    return _rows(tensor, size, row, start, stop, shape)


def _rows(
    tensor: WeightTensor, size: int, row: tuple[int, ...], start: int, stop: int, shape: tuple[int, ...]
) -> WeightTensor | str:
    row_bits = tensor.dtype.bitwidth * math.prod(row)
    if row_bits * start % 8 or row_bits * stop % 8:
        return "its rows do not begin at whole bytes"
    view = tensor.view
    if view is None:
        job = tensor.blob.job
        if not isinstance(job, Divisible):
            return "an earlier pass computes it in one piece"
        return WeightTensor(Blob(job.rows(start, stop), tensor.blob.output), tensor.dtype, shape)
    if len(view.shape) == 1:  # a vector, or the flat form of a matrix
        each = math.prod(row)
        return WeightTensor.of_view(view.rows(start * each, stop * each))
    if view.shape[0] != size:  # dimensions of one in front
        view = tensor.reshaped((size, *row), "").view
        if view is None:
            return "its rows lie apart in the file"
    return WeightTensor.of_view(view.rows(start, stop)).reshaped(shape, "")


def _columns(tensor: WeightTensor, start: int, stop: int) -> WeightTensor | str:
    if tensor.view is None:
        return "an earlier pass computes it in one piece"
    if len(tensor.dims) != 2 or tensor.dtype.bitwidth % 8:
        return f"it is {tensor.dtype}{list(tensor.dims)}, whose columns cannot be divided"
    return WeightTensor.of_view(tensor.view.transpose().rows(start, stop).transpose())


def put_together(tensors: Sequence[WeightTensor], axis: int) -> WeightTensor | str:
    """Return the tensors as one, joined along `axis`; the reverse of `take`.

    Returns:
        A tensor, or the reason why there is none: a clause such as "they are float32 and float16".
    """
    dtypes = list(dict.fromkeys(str(tensor.dtype) for tensor in tensors))
    if len(dtypes) > 1:
        return f"they are {' and '.join(dtypes)}"
    rests = {(*tensor.dims[:axis], *tensor.dims[axis + 1 :]) for tensor in tensors}
    if len(rests) != 1:
        return "they have the shapes " + ", ".join(str(list(tensor.dims)) for tensor in tensors)
    dims = list(tensors[0].dims)
    dims[axis] = sum(tensor.dims[axis] for tensor in tensors)
    if math.prod(dims[:axis]) == 1:
        return _below(tensors, tuple(dims), axis)
    views = [tensor.view for tensor in tensors]
    if None in views or len(dims) != 2:
        return "earlier passes compute them"
    return WeightTensor.of_view(join([view for view in views if view is not None], 1))


def _below(tensors: Sequence[WeightTensor], dims: tuple[int, ...], axis: int) -> WeightTensor | str:
    if any(tensor.nbytes * 8 != tensor.size * tensor.dtype.bitwidth for tensor in tensors):
        return "they do not fill whole bytes"
    rows = [tensor.reshaped(tensor.dims[axis:], "").view if axis else tensor.view for tensor in tensors]
    views = [view for view in rows if view is not None]
    if len(views) == len(tensors):
        return WeightTensor.of_view(join(views, 0)).reshaped(dims, "")
    jobs = [tensor.blob.job for tensor in tensors]
    outputs = {tensor.blob.output for tensor in tensors}
    if not all(isinstance(job, QuantizeJob) for job in jobs) or len(outputs) != 1:
        return "earlier passes compute them"
    joined = _quantized([job for job in jobs if isinstance(job, QuantizeJob)])
    return joined if isinstance(joined, str) else WeightTensor(Blob(joined, outputs.pop()), tensors[0].dtype, dims)


def _quantized(jobs: Sequence[QuantizeJob]) -> QuantizeJob | str:
    """Return the job that quantizes all rows, each by itself as before."""
    first = jobs[0]
    if any(replace(job, view=first.view) != first for job in jobs[1:]):
        return "an earlier pass quantizes them in different ways"
    names = " + ".join(dict.fromkeys(job.name for job in jobs))
    return replace(first, view=join([job.view for job in jobs], 0), name=names)
