"""The data files themselves: bytes that no weight reads, and weights at places that cannot be mapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from onnx_tailor.lint.finding import Finding, Mend, Subject
from onnx_tailor.weights.files import DataFile
from onnx_tailor.weights.plan import ALIGNMENT
from onnx_tailor.weights.view import View

_LARGE = 1 << 20
"""Bytes from which mapping a weight matters."""
_PADDINGS = (64, 256, 4096, 65536)
"""Multiples at which writers let weights begin."""
_MEND = Mend("reshape-dim")  # any recipe writes the data anew; this pass does nothing to a model that is right


def orphaned(subjects: Sequence[Subject]) -> Iterator[Finding]:
    """Name the data files with bytes that no weight of any of the models reads."""
    ranges: dict[Path, list[tuple[int, int]]] = {}
    owners: dict[Path, tuple[Subject, DataFile]] = {}
    for subject in subjects:
        for _, tensor in subject.weights:
            view = tensor.view
            if isinstance(view, View) and isinstance(view.file, DataFile) and view.file.path != subject.model.path:
                ranges.setdefault(view.file.path, []).append((view.offset, view.offset + view.nbytes))
                owners.setdefault(view.file.path, (subject, view.file))
    for path, used in ranges.items():
        subject, file = owners[path]
        lost = unread(used, file.size)
        if lost:
            what = f"{lost} of its {file.size} bytes belong to no weight, as tools leave that append when they save"
            yield subject.problem("orphaned-bytes", path.name, what, bytes_=lost, mend=_MEND)


def unread(used: Iterable[tuple[int, int]], size: int) -> int:
    """Return how many of a file's bytes lie outside the ranges `used`, but for the padding before aligned ones."""
    lost, end = 0, 0
    for start, stop in sorted({*used, (size, size)}):
        gap = start - end
        padding = start == size and gap < ALIGNMENT
        padding = padding or any(start % step == 0 and gap < step for step in _PADDINGS)
        if gap > 0 and not padding:
            lost += gap
        end = max(end, stop)
    return lost


def unaligned(subject: Subject) -> Iterator[Finding]:
    """Name the weights that begin inside an element, and note large ones that begin inside a page."""
    loose = []
    for value, tensor in subject.weights:
        view = tensor.view
        if not isinstance(view, View) or not isinstance(view.file, DataFile) or view.file.path == subject.model.path:
            continue
        if view.offset % max(1, int(tensor.dtype.itemsize)):
            what = f"begins at byte {view.offset}, inside an element of {tensor.dtype}"
            yield subject.problem("alignment", value.name, what, mend=_MEND)
        elif view.offset % ALIGNMENT and tensor.nbytes >= _LARGE:
            loose.append((value, tensor))
    if loose:
        many = "a large weight begins" if len(loose) == 1 else f"{len(loose)} large weights begin"
        what = f"{many} at no multiple of {ALIGNMENT}, which the ONNX format asks for where files are mapped"
        yield subject.note("alignment", loose[0][0].name, what, mend=_MEND)
