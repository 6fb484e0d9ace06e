"""How long a run would take, from a short measurement of this machine."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from onnx_tailor.weights.pool import workers
from onnx_tailor.weights.quantize_job import QuantizeJob

if TYPE_CHECKING:
    from onnx_tailor.output.write import Job
    from onnx_tailor.weights.jobs import Job as WeightJob

_HASHED = 4 << 20
"""Bytes that are hashed to measure how fast that goes."""


def expected_seconds(job: Job) -> float | None:
    """Tell how long writing and hashing would take here by threads, the files being read as fast as the tiles tried.

    A tile of the largest weight of each kind of work is computed twice, and the second time counts.

    Returns:
        Seconds; None with `gptq` and `gptaq`, whose factorization is too much work to try.

    Raises:
        ModelError: a tile cannot be read or computed.
    """
    kinds: dict[Hashable, list[tuple[WeightJob, frozenset[str]]]] = {}
    for each, places in job.storage.plan.by_job().items():
        if isinstance(each, QuantizeJob) and each.factor is not None:
            return None
        kinds.setdefault(_kind(each), []).append((each, frozenset(places)))
    computing = 0.0
    for alike in kinds.values():
        largest, wanted = max(alike, key=lambda pair: pair[0].read_bytes)
        computing += _seconds_per_byte(largest, wanted) * sum(each.read_bytes for each, _ in alike)
    before = sum(file.size for file in job.inputs) * _seconds_to_hash(blake3)
    files = job.file_bytes
    after = sum(files.values()) / max(1, min(workers(), len(files))) * _seconds_to_hash(hashlib.sha256)
    return max(computing / workers(), before) + after


def _kind(job: WeightJob) -> Hashable:
    """Return what decides how long a byte takes."""
    view = getattr(job, "view", None)
    look = (view.dtype, view.turned) if view is not None and view.shape else None
    return type(job), getattr(job, "format", None), getattr(job, "label", None), look


def _seconds_per_byte(job: WeightJob, wanted: frozenset[str]) -> float:
    tiles = job.tiles()
    tile = max(tiles, key=lambda tile: tile[1] - tile[0], default=None)
    if tile is None or not job.read_bytes:
        return 0.0
    rows = sum(stop - start for start, stop in tiles)
    for _ in job.compute(tile, wanted):  # compiles what it needs
        pass
    started = time.perf_counter()
    for _ in job.compute(tile, wanted):
        pass
    return (time.perf_counter() - started) * rows / ((tile[1] - tile[0]) * job.read_bytes)


def _seconds_to_hash(digest: Callable[[bytes], Any]) -> float:
    """Return the seconds that `digest` takes for a byte."""
    content = bytes(_HASHED)
    started = time.perf_counter()
    digest(content)
    return (time.perf_counter() - started) / _HASHED
