"""The storage plan: every byte of the output has its place before the first one is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx_tailor.errors import UsageError
from onnx_tailor.weights.jobs import Job
from onnx_tailor.weights.tensors import Blob, WeightTensor

ALIGNMENT = 4096
"""Bytes; ONNX Runtime maps external data straight from the file only at page boundaries."""


@dataclass(frozen=True)
class Place:
    """Where a blob begins."""

    file: str
    """Name of the data file."""
    offset: int


@dataclass(frozen=True)
class Plan:
    """Where each blob goes. Tensors of one store that share a blob share its bytes."""

    files: Mapping[str, int]
    """Bytes of each data file, by its name."""
    places: Mapping[tuple[str, Blob], Place]
    """By the store, which is named after its first file, and the blob."""

    def of(self, store: str, tensor: WeightTensor) -> Place:
        """Return the place of a tensor."""
        return self.places[store, tensor.blob]

    def by_job(self) -> dict[Job, dict[str, tuple[Place, ...]]]:
        """Return where each wanted output of each job goes: to one place in every store that holds it."""
        jobs: dict[Job, dict[str, tuple[Place, ...]]] = {}
        for (_, blob), place in self.places.items():
            outputs = jobs.setdefault(blob.job, {})
            outputs[blob.output] = (*outputs.get(blob.output, ()), place)
        return jobs


def plan(stores: Mapping[str, Iterable[WeightTensor]], max_file: int | None = None) -> Plan:
    """Place each distinct blob of a store once, in the order of first use.

    A store begins a new file where `max_file` bytes would be exceeded: NAME, NAME_1, NAME_2, the names that
    transformers.js looks for.

    Raises:
        UsageError: one weight alone is larger than `max_file`, or two stores would have a file of one name.
    """
    files: dict[str, int] = {}
    places: dict[tuple[str, Blob], Place] = {}
    for store, tensors in stores.items():
        name, end, number = store, 0, 0
        for tensor in tensors:
            blob = tensor.blob
            if (store, blob) in places:
                continue
            if max_file is not None and blob.nbytes > max_file:
                raise UsageError(
                    f"weight {tensor.name} has {blob.nbytes} bytes, more than a shard may have ({max_file}); "
                    "a weight cannot be divided, so allow at least that"
                )
            start = -(-end // ALIGNMENT) * ALIGNMENT
            if max_file is not None and start + blob.nbytes > max_file:
                number += 1
                name, start = f"{store}_{number}", 0
                if name in files or name in stores:
                    raise UsageError(
                        f"{name}: would be the name of a part of {store} and of other weights; allow larger shards, "
                        "or rename the model's data files"
                    )
            places[store, blob] = Place(name, start)
            files[name] = end = start + blob.nbytes
    return Plan(files, places)
