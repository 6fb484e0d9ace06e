"""What a run would need, told before it."""

from __future__ import annotations

import sys

from onnx_tailor.output.duration import expected_seconds
from onnx_tailor.output.write import Job
from onnx_tailor.report import Forecast
from onnx_tailor.weights.pool import BUDGET, workers
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.transposed_codes import TransposedCodes

_LOADED, _COMPILED = 128 << 20, 288 << 20
"""Bytes in memory for the kernels: where their code is on the disk, and where it has to be compiled."""


def forecast(job: Job) -> Forecast:
    """Tell sizes and needs of the output of `job`, whose passes have run in this process.

    Raises:
        ModelError: a weight cannot be read or computed.
    """
    jobs = job.storage.plan.by_job()
    largest = max((each.work_bytes(tile) for each in jobs for tile in each.tiles()), default=0)
    resident = _resident()  # first: what follows loads what the kernels need
    return Forecast(
        file_bytes=job.file_bytes,
        disk_bytes=job.disk_bytes(),
        memory_bytes=resident + _kernels(job) + max(largest, min(workers() * largest, BUDGET)),
        read_bytes=job.read_bytes,
        seconds=expected_seconds(job),  # last: it loads the kernels, which the memory has in it already
    )


def _kernels(job: Job) -> int:
    """Return the bytes that the kernels will take, besides those that this process holds."""
    if not any(isinstance(each, QuantizeJob | TransposedCodes) for each in job.storage.plan.by_job()):
        return 0
    from onnx_tailor.quant import machine_code  # a run that quantizes nothing does without

    if machine_code.is_loaded():
        return 0
    return _LOADED if machine_code.is_kept() else _COMPILED


def _resident() -> int:
    """Return the peak of this process's resident memory so far, in bytes; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
