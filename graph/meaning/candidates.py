"""The weights worth quantizing: each with everything that reads it, its place and its names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx_ir as ir

from onnx_tailor.graph.constants import Matrix, final_readers
from onnx_tailor.graph.meaning.heads import head_nodes
from onnx_tailor.graph.meaning.roles import Place, find_places, paths
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.projections import Projection, find_projections
from onnx_tailor.graph.tables.stacks import Stack, find_stacks
from onnx_tailor.graph.tables.token_tables import Table, find_tables
from onnx_tailor.weights.view import Window


@dataclass(frozen=True)
class Candidate:
    """One float weight [N, K] and the nodes that multiply by it or gather from it: several for a tied table."""

    matrix: Matrix
    projections: tuple[Projection, ...]
    tables: tuple[Table, ...]
    place: Place
    stacks: tuple[Stack, ...] = ()
    """Readers that choose among the rows, each a matrix [N, K] of its own."""
    others: tuple[str, ...] = ()
    """What else reads its initializers, and goes on to do so whatever becomes of the readers."""

    @property
    def name(self) -> str:
        """The name that a person would call it by: the first reader's."""
        return next((node.name for node in self.readers if node.name), self.matrix.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K], or [experts, N, K] of a stack."""
        rows, columns = self.matrix.shape
        return (rows, *self.stacks[0].tail) if self.stacks else (rows, columns)

    @property
    def readers(self) -> tuple[ir.Node, ...]:
        """The nodes that multiply by it or gather from it; for a choice of matrices, what multiplies by those."""
        gathers = (*(table.node for table in self.tables), *(stack.product for stack in self.stacks))
        return (*(projection.node for projection in self.projections), *gathers)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that a selector can match; a tied table is both embedding and head."""
        own = (self.place.role,) if self.place.role else ()
        return (*own, "embedding") if self.tables and "embedding" not in own else own

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names that a glob pattern can match: nodes, weight, and the modules of a torch.onnx export."""
        found = [name for node in self.readers for name in paths(node, self.matrix.name).values() if name]
        return tuple(dict.fromkeys(found))


def find_candidates(model: TailorModel, places: Mapping[ir.Node, Place] | None = None) -> list[Candidate]:
    """Return every float weight that a projection, a token Gather or a router's choice reads, each byte range once.

    Their `places` are looked for where the caller has not found them yet.
    """
    projections: dict[Window, list[Projection]] = {}
    tables: dict[Window, list[Table]] = {}
    stacks: dict[Window, list[Stack]] = {}
    matrices: dict[Window, Matrix] = {}
    for projection in find_projections(model):
        projections.setdefault(projection.weight.view, []).append(projection)
        matrices.setdefault(projection.weight.view, projection.weight)
    for table in find_tables(model):
        tables.setdefault(table.matrix.view, []).append(table)
        matrices.setdefault(table.matrix.view, table.matrix)
    for stack in find_stacks(model):
        stacks.setdefault(stack.matrix.view, []).append(stack)
        matrices.setdefault(stack.matrix.view, stack.matrix)
    if places is None:
        places = find_places(model, head_nodes(model))
    found = []
    for view, matrix in matrices.items():
        readers, gathers, choices = projections.get(view, []), tables.get(view, []), stacks.get(view, [])
        where = _place([p.node for p in readers], gathers, places)
        if choices:
            where = expert_place(places.get(choices[0].product))
        found.append(Candidate(matrix, tuple(readers), tuple(gathers), where, tuple(choices)))
    known = {node for each in found for node in (*each.readers, *(stack.node for stack in each.stacks))}
    return [replace(each, others=tuple(_others(each, known))) for each in found]


def _others(candidate: Candidate, known: set[ir.Node]) -> Iterator[str]:
    """Name what reads the initializers of a candidate and is no reader of any."""
    matrices = [table.matrix for table in candidate.tables] + [stack.matrix for stack in candidate.stacks]
    for root in dict.fromkeys(m.root for m in (*matrices, *(each.weight for each in candidate.projections))):
        for node in final_readers(root):
            if node not in known:
                yield f"{node.op_type} {node.name}" if node.name else f"a {node.op_type}"


def layer_count(candidates: Sequence[Candidate]) -> int:
    """Return the number of layers that the candidates' places name."""
    return 1 + max((c.place.layer for c in candidates if c.place.layer is not None), default=-1)


def expert_place(where: Place | None) -> Place:
    """Return the place of what a router chooses from, given that of what multiplies by it."""
    known_by = "" if where is None or where.recognised_by == "nothing" else where.recognised_by
    told_by = ["structure", *(each for each in known_by.split(", ") if each not in {"", "structure"})]
    return Place(None if where is None else where.layer, "expert", ", ".join(told_by))


def _place(readers: list[ir.Node], gathers: list[Table], places: Mapping[ir.Node, Place]) -> Place:
    if not readers:
        return Place(None, "embedding", "structure") if gathers else Place(None, None, "nothing")
    found = [places[reader] for reader in readers]
    return next((place for place in found if place.role == "lm_head"), found[0])
