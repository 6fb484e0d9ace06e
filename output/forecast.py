"""What a run would need, told before it."""

from __future__ import annotations

import sys

from onnx_tailor.output.duration import expected_seconds
from onnx_tailor.output.write import Job
from onnx_tailor.report import Forecast
from onnx_tailor.weights.pool import BUDGET, workers

_KERNELS = 128 << 20
"""Bytes that the compiled kernels and their compiler take, which no dry run loads."""


def forecast(job: Job) -> Forecast:
    """Tell sizes and needs of the output of `job`, whose passes have run in this process.

    Raises:
        ModelError: a weight cannot be read or computed.
    """
    jobs = job.storage.plan.by_job()
    largest = max((each.work_bytes(tile) for each in jobs for tile in each.tiles()), default=0)
    return Forecast(
        file_bytes=job.file_bytes,
        disk_bytes=job.disk_bytes(),
        memory_bytes=_resident() + _KERNELS + max(largest, min(workers() * largest, BUDGET)),
        read_bytes=job.read_bytes,
        seconds=expected_seconds(job),  # last: it loads the kernels, which the memory has in it already
    )


def _resident() -> int:
    """Return the peak of this process's resident memory so far, in bytes; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
