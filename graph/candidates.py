"""The weights worth quantizing: each with everything that reads it, its place and its names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.constants import Matrix
from onnx_tailor.graph.heads import head_nodes
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.projections import Projection, find_projections
from onnx_tailor.graph.roles import Place, find_places, paths
from onnx_tailor.graph.tables import Table, find_tables
from onnx_tailor.weights.view import Window


@dataclass(frozen=True)
class Candidate:
    """One float weight [N, K] and all nodes that read it: more than one for a tied table."""

    matrix: Matrix
    projections: tuple[Projection, ...]
    tables: tuple[Table, ...]
    place: Place

    @property
    def name(self) -> str:
        """The name that a person would call it by: the first reader's."""
        return self.projections[0].name if self.projections else self.tables[0].node.name or self.matrix.name

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that a selector can match; a tied table is both embedding and head."""
        own = (self.place.role,) if self.place.role else ()
        return (*own, "embedding") if self.tables and "embedding" not in own else own

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a glob pattern can match: nodes, weight, and the modules of a torch.onnx export."""
        nodes = [p.node for p in self.projections] + [t.node for t in self.tables]
        found = [name for node in nodes for name in paths(node, self.matrix.name).values() if name]
        return tuple(dict.fromkeys(found))


def find_candidates(model: TailorModel) -> list[Candidate]:
    """Return every float weight that a projection or a token Gather reads, one entry for each range of bytes."""
    projections: dict[Window, list[Projection]] = {}
    tables: dict[Window, list[Table]] = {}
    matrices: dict[Window, Matrix] = {}
    for projection in find_projections(model):
        projections.setdefault(projection.weight.view, []).append(projection)
        matrices.setdefault(projection.weight.view, projection.weight)
    for table in find_tables(model):
        tables.setdefault(table.matrix.view, []).append(table)
        matrices.setdefault(table.matrix.view, table.matrix)
    places = find_places(model, head_nodes(model))
    found = []
    for view, matrix in matrices.items():
        readers, gathers = projections.get(view, []), tables.get(view, [])
        where = _place(readers, gathers, places)
        found.append(Candidate(matrix, tuple(readers), tuple(gathers), where))
    return found


def layer_count(candidates: Sequence[Candidate]) -> int:
    """Return the number of layers that the candidates' places name."""
    return 1 + max((c.place.layer for c in candidates if c.place.layer is not None), default=-1)


def _place(readers: list[Projection], gathers: list[Table], places: dict[ir.Node, Place]) -> Place:
    if not readers:
        return Place(None, "embedding", "structure") if gathers else Place(None, None, "nothing")
    found = [places[reader.node] for reader in readers]
    return next((place for place in found if place.role == "lm_head"), found[0])
