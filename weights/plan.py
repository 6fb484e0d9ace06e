"""The storage plan: every byte of the output has its place before the first one is computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnx_tailor.weights.jobs import Job
from onnx_tailor.weights.tensors import Blob, WeightTensor

ALIGNMENT = 4096
"""Bytes; ONNX Runtime maps external data straight from the file only at page boundaries."""


@dataclass(frozen=True)
class Plan:
    """Where each blob goes in one data file. Tensors that share a blob share its bytes."""

    offsets: dict[Blob, int]
    size: int
    """Bytes of the data file."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all blobs, without the gaps."""
        return sum(blob.nbytes for blob in self.offsets)

    def by_job(self) -> dict[Job, dict[str, int]]:
        """Return the offsets of each job's wanted outputs."""
        jobs: dict[Job, dict[str, int]] = {}
        for blob, offset in self.offsets.items():
            jobs.setdefault(blob.job, {})[blob.output] = offset
        return jobs


def plan(tensors: Iterable[WeightTensor]) -> Plan:
    """Place each distinct blob once, in the order of first use."""
    offsets: dict[Blob, int] = {}
    end = 0
    for tensor in tensors:
        if tensor.blob not in offsets:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            offsets[tensor.blob] = start
            end = start + tensor.blob.nbytes
    return Plan(offsets, end)
