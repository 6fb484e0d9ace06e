"""Weights that lie twice in the data files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import onnx_ir as ir

from onnx_tailor.graph.tables.token_tables import find_tables
from onnx_tailor.lint.finding import Finding, Subject
from onnx_tailor.weights.view import View

_SMALL = 4096
"""Bytes below which a copy is not worth a word."""
_HEAD = 1 << 16
"""Bytes that are compared first: few different weights begin alike."""


def equal_weights(subject: Subject) -> Iterator[Finding]:
    """Name the weights of equal bytes at different places; tables and heads are left to the rule `untied`."""
    views = [table.matrix.view for table in find_tables(subject.model)]
    tables = {view.bytes_view() for view in views if isinstance(view, View) and view.is_contiguous}
    groups: dict[tuple[object, ...], dict[View, ir.Value]] = {}
    for value, tensor in subject.weights:
        view = tensor.view
        if tensor.nbytes >= _SMALL and isinstance(view, View) and view.is_contiguous:
            view = view.bytes_view()
            groups.setdefault((tensor.dtype, tensor.nbytes), {}).setdefault(view, value)
    for alike in groups.values():
        by_start = _grouped(alike, _start)
        for likely in by_start:
            for equal in _grouped(likely, _digest):
                names = [value.name or "" for value in equal.values()]
                if not tables.intersection(equal):
                    size = sum(view.nbytes for view in list(equal)[1:])
                    what = f"equal bytes, stored {len(equal)} times: {', '.join(names[:4])}"
                    yield subject.problem("duplicate", names[0], what, bytes_=size)


def _grouped(views: dict[View, ir.Value], key: Callable[[View], bytes]) -> list[dict[View, ir.Value]]:
    """Return the groups of at least two views that `key` finds alike."""
    if len(views) < 2:
        return []
    groups: dict[bytes, dict[View, ir.Value]] = {}
    for view, value in views.items():
        groups.setdefault(key(view), {})[view] = value
    return [group for group in groups.values() if len(group) > 1]


def _start(view: View) -> bytes:
    return view.rows(0, min(_HEAD, view.nbytes)).read().tobytes()


def _digest(view: View) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for tile in view.tiles():
        digest.update(view.rows(*tile).read().tobytes())
    return digest.digest()
