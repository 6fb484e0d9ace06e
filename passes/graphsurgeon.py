"""The pass `graphsurgeon`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from onnx_tailor.errors import ModelError, OptionError
from onnx_tailor.graph.placeholders import from_placeholders, to_placeholders
from onnx_tailor.passes.base import Pass
from onnx_tailor.report import Change, Skip

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnx_tailor.graph.model import TailorModel
    from onnx_tailor.targets import Target


@dataclass(frozen=True, kw_only=True)
class GraphSurgeon(Pass):
    """Let a Python function `f(graph: onnx_graphsurgeon.Graph) -> None` edit the graph.

    The function runs as trusted code, from a module that is installed or on PYTHONPATH. Weights stay in their files:
    it sees them as LazyValues, and reading one fails. What it does is not checked here: use `verify`.
    """

    name: ClassVar[str] = "graphsurgeon"

    function: str
    """Where the function is: `package.module:function`."""

    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        """Hand the graph to the function and take it back.

        Raises:
            OptionError: no such module or function.
            ModelError: the function raised, or left a graph that cannot be read.
        """
        import onnx_graphsurgeon as gs

        function = self._function()
        before = _census(model)
        proto, weights = to_placeholders(model)
        graph = gs.import_onnx(proto)
        try:
            function(graph)
            result = gs.export_onnx(graph, do_type_check=False)
        except Exception as error:  # the user's function may raise anything
            raise ModelError(f"{model.path}: {self.function} failed: {type(error).__name__}: {error}") from error
        for key in ("ir_version", "producer_name", "producer_version"):
            setattr(result, key, getattr(proto, key))
        model.ir_model = from_placeholders(model, result, weights)
        after = _census(model)
        changed = {op: after.get(op, 0) - before.get(op, 0) for op in sorted(before | after)}
        changed = {op: count for op, count in changed.items() if count}
        what = ", ".join(f"{count:+d} {op}" for op, count in changed.items()) or "the same operators as before"
        yield Change(where=self.function, what=what, details={"operators": changed})

    def _function(self) -> Callable[[gs.Graph], None]:
        module, _, name = self.function.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise OptionError(
                f"function {self.function!r} cannot be imported ({error}); write it as package.module:function",
                key=("function",),
            ) from error
        if not callable(found):
            raise OptionError(f"{self.function!r} is no function", key=("function",))
        return found  # type: ignore[no-any-return]  # an imported attribute has no type


def _census(model: TailorModel) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
