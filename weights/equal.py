"""Find weights of equal bytes, so that they are stored once: in the files of a set, in the branches of an If."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any

from onnx_tailor.quant.order import row_major
from onnx_tailor.weights.jobs import CopyJob, Job
from onnx_tailor.weights.joined import Joined
from onnx_tailor.weights.pool import memory, workers
from onnx_tailor.weights.protobuf import INLINE_LIMIT
from onnx_tailor.weights.tensors import Blob, WeightTensor
from onnx_tailor.weights.view import View, Window, as_bytes

_GLANCE, _SAMPLE = 32, 4096
"""Bytes of each end of a weight that are looked at first, and before the rest where these are equal."""


def share_equal(tensors: Iterable[WeightTensor]) -> None:
    """Let all `tensors` whose bytes are equal, or are computed alike from equal bytes, read one blob.

    Equal means equal elements in the same order: a weight that is stored transposed is the same as another where a
    job reads both in one orientation, as quantization does. Samples and hashes rule out; what remains is proved by
    comparing bytes. Weights are read in tiles, and only where another has their size.
    """
    tensors = list(tensors)
    views = list(dict.fromkeys(view for tensor in tensors for view in _views(tensor.blob.job)))
    same = equal_views(views)
    if not same:
        return
    first: dict[Job, Job] = {}
    for tensor in tensors:
        job = _reading(tensor.blob.job, same)
        known = first.setdefault(job, job)
        tensor.blob = Blob(_beside(job, known), tensor.blob.output)


def _views(job: object) -> Iterator[Window]:
    """Iterate over the views that a job reads, also those of jobs within it."""
    for each in fields(job):  # type: ignore[arg-type]  # every job is a dataclass
        value = getattr(job, each.name)
        if isinstance(value, View | Joined):
            if value.nbytes >= INLINE_LIMIT:
                yield value
        elif is_dataclass(value) and each.compare:
            yield from _views(value)


def _reading(job: Any, same: dict[Window, Window]) -> Any:
    """Return the job over the first of the equal weights."""
    if isinstance(job, CopyJob):
        equal = same.get(job.view, job.view) if isinstance(job.view, View) else job.view
        return CopyJob(as_bytes(equal))
    changed = {}
    for each in fields(job):
        value = getattr(job, each.name)
        if isinstance(value, View | Joined):
            new = _as(same[value], value) if value in same else None
        elif is_dataclass(value) and each.compare:
            new = _reading(value, same)
        else:
            continue
        if new is not None and new != value:
            changed[each.name] = new
    return replace(job, **changed) if changed else job


def _as(equal: Window, view: Window) -> Window | None:
    """Return the bytes of `equal` under dtype and shape of `view`, or None where they don't lie so."""
    if isinstance(equal, View) and equal.is_contiguous:
        return View.contiguous(equal.file, equal.offset, view.dtype, view.shape)
    return equal if (equal.dtype, equal.shape) == (view.dtype, view.shape) else None


def _beside(job: Any, known: Any) -> Any:
    """Return `job`, sharing with the equal job `known` what is no part of its identity, but for its name."""
    if job is known:
        return job
    shared = {f.name: getattr(known, f.name) for f in fields(job) if not f.compare and f.name != "name"}
    return replace(job, **shared)


def equal_views(views: list[Window]) -> dict[Window, Window]:
    """Return, for each view whose bytes in its own order are those of an earlier one, that one.

    A contiguous view counts as earlier than one that is not.

    Raises:
        ModelError: a weight cannot be read.
    """
    same: dict[Window, Window] = {}
    for alike in _groups(views, [lambda view: view.nbytes, _glance, sample, _digest]):
        # A contiguous view can stand for any other of its bytes.
        kept: list[Window] = []
        for view in sorted(alike, key=lambda view: not view.is_contiguous):
            found = next((first for first in kept if _proved(first, view)), None)
            if found is None:
                kept.append(view)
            else:
                same[view] = found
    return same


def _groups(views: list[Window], keys: list[Callable[[Window], Hashable]]) -> list[list[Window]]:
    """Return the groups of at least two views that have all `keys` in common; a later key is asked only of these."""
    groups = [views]
    with ThreadPoolExecutor(workers()) as pool:
        for key in keys:
            finer = []
            for group in groups:
                parts: dict[Hashable, list[Window]] = {}
                for view, value in zip(group, pool.map(key, group), strict=True):
                    parts.setdefault(value, []).append(view)
                finer += [part for part in parts.values() if len(part) > 1]
            groups = finer
    return groups


def _glance(view: Window) -> bytes:
    """Return a few bytes of both ends."""
    return _ends(view, _GLANCE)


def sample(view: Window) -> bytes:
    """Return some bytes of both ends."""
    return _ends(view, _SAMPLE)


def _ends(view: Window, size: int) -> bytes:
    """Return the first and the last `size` bytes, of short files all of them twice."""
    if view.is_contiguous:
        raw = as_bytes(view)
        return _raw(raw.rows(0, min(size, raw.nbytes))) + _raw(raw.rows(max(0, raw.nbytes - size), raw.nbytes))
    count = view.shape[0]
    rows = min(count, max(1, -(-size * count // view.nbytes)))
    head, tail = view.rows(0, rows), view.rows(count - rows, count)
    wanted = size // int(view.dtype.itemsize)
    if rows == 1 and len(view.shape) == 2 and wanted < view.shape[1]:
        # Where the rows lie across the file's, each element is a read of its own.
        columns = view.shape[1]
        head, tail = head.transpose().rows(0, wanted), tail.transpose().rows(columns - wanted, columns)
    return _raw(head)[:size] + _raw(tail)[-size:]


def _digest(view: Window) -> bytes:
    """Return a hash of all bytes, read in tiles."""
    source = as_bytes(view)
    digest = hashlib.sha256()
    for tile in source.tiles():
        part = source.rows(*tile)
        with memory.reserved(2 * part.nbytes):
            digest.update(_raw(part))
    return digest.digest()


def _proved(first: Window, second: Window) -> bool:
    """Whether all bytes are equal. Both are read in tiles of the one that is not contiguous, if any is not."""
    if not (first.is_contiguous or second.is_contiguous or first.shape == second.shape):
        return False
    whole = second if not second.is_contiguous else first
    whole = as_bytes(whole)
    row_bytes = whole.nbytes // whole.shape[0]
    return all(_range(first, tile, row_bytes) == _range(second, tile, row_bytes) for tile in whole.tiles())


def _range(view: Window, tile: tuple[int, int], row_bytes: int) -> bytes:
    if view.is_contiguous:
        return _raw(as_bytes(view).rows(tile[0] * row_bytes, tile[1] * row_bytes))
    return _raw(view.rows(*tile))


def _raw(view: Window) -> bytes:
    return row_major(view.read()).tobytes()
