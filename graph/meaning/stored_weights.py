"""Every weight of a model by its meaning, and its values, whether it is stored in float or in blocks of codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_tailor.graph.constants import Matrix
from onnx_tailor.graph.meaning.landmarks import Landmark, find_landmarks, products
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute
from onnx_tailor.graph.projections import Projection, match_projection
from onnx_tailor.graph.tables.nbits_weight import stored_operands
from onnx_tailor.graph.tables.read_block_table import FoundTable, find_block_tables
from onnx_tailor.graph.tables.token_tables import find_tables
from onnx_tailor.quant.quantize import unpack

__all__ = ["Blocks", "StoredWeight", "stored_weights"]

_ROWS = 1 << 20
"""Elements that are dequantized at once."""


@dataclass(frozen=True)
class Blocks:
    """The operands of a MatMulNBits, or of a table in its shapes."""

    operands: tuple[ir.Value, ...]
    """Codes, scales and, where there are any, zero points."""
    bits: int
    block_size: int
    shape: tuple[int, int]
    """[N, K]"""

    def rows(self, first: int, last: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield runs of the rows `first` to `last`, dequantized, with the number of each run's first."""
        rows, columns = self.shape
        codes, scales, *points = (_numpy(value) for value in self.operands)
        blocks = -(-columns // self.block_size)
        codes, scales = codes.reshape(rows, -1), scales.reshape(rows, blocks)
        step = max(1, _ROWS // columns)
        for start in range(first, last, step):
            part = slice(start, min(start + step, last))
            values = unpack(codes[part], self.bits).astype(np.float32).reshape(-1, blocks, self.block_size)
            values -= self._zero_points(points, part, rows, blocks)[..., None]
            values *= scales[part].astype(np.float32)[..., None]
            yield start, values.reshape(len(values), -1)[:, :columns]

    def _zero_points(self, points: list[npt.NDArray[Any]], part: slice, rows: int, blocks: int) -> Any:
        if not points:
            return np.full((1, 1), 1 << (self.bits - 1), np.float32)
        found = points[0].reshape(rows, -1)[part]
        if found.dtype == np.uint8:
            found = unpack(found, self.bits)[:, :blocks]
        return found.astype(np.float32)


@dataclass(frozen=True)
class StoredWeight:
    """One weight [N, K] with everything that reads it."""

    marks: tuple[Landmark, ...]
    """Its readers, as far as their meaning is known; the first in the order of the graph is first."""
    name: str
    """The first reader's name."""
    form: Matrix | Blocks

    @property
    def initializers(self) -> tuple[ir.Value, ...]:
        """The initializers that hold it."""
        return (self.form.root,) if isinstance(self.form, Matrix) else self.form.operands

    @property
    def shape(self) -> tuple[int, int]:
        """Return [N, K]."""
        return self.form.shape

    def rows(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield runs of the rows `first` to `last` with the number of each run's first; float32 if dequantized.

        Weights of as many columns are cut into runs of as many rows.
        """
        last = self.shape[0] if last is None else last
        if isinstance(self.form, Blocks):
            yield from self.form.rows(first, last)
            return
        view, step = self.form.view, max(1, _ROWS // self.shape[1])
        for start in range(first, last, step):
            yield start, np.asarray(view.rows(start, min(start + step, last)).read())


def stored_weights(model: TailorModel) -> list[StoredWeight]:
    """Return the weights that projections and token tables of the main graph read, each once."""
    marks = {mark.node: mark for mark in find_landmarks(model) if "residual" not in mark.role}
    found: dict[ir.Value, tuple[list[Landmark], str, Matrix | Blocks]] = {}
    for node, form in _forms(model):
        if node.graph is not model.graph:
            continue
        first = form.root if isinstance(form, Matrix) else form.operands[0]
        readers, _, _ = found.setdefault(first, ([], node.name or "", form))
        readers += [marks[node]] if node in marks else []
    return [StoredWeight(tuple(readers), name, form) for readers, name, form in found.values()]


def _forms(model: TailorModel) -> Iterable[tuple[ir.Node, Matrix | Blocks]]:
    # The projections come first: a table's own form may lack what its head's has, as the layout `correction` does.
    for node, _ in products(model):
        matched = match_projection(node)
        if isinstance(matched, Projection):
            yield node, matched.weight
        elif node.domain == MICROSOFT:
            shape = attribute(node, "N", 0), attribute(node, "K", 0)
            yield (
                node,
                Blocks(stored_operands(node), attribute(node, "bits", 4), attribute(node, "block_size", 32), shape),
            )
    for table in find_tables(model):
        yield table.node, table.matrix
    for found in find_block_tables(model):
        if isinstance(found, FoundTable):
            held = found.table
            parts = [held.codes, held.scales, *([held.zero_points] if held.zero_points is not None else [])]
            yield found.node, Blocks(tuple(parts), held.bits, held.block_size, (held.rows, held.columns))


def _numpy(value: ir.Value) -> npt.NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()
