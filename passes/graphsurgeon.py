"""The pass `graphsurgeon`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnx_tailor.errors import ModelError, OptionError
from onnx_tailor.graph.file.placeholders import PREFIX, from_placeholders, to_placeholders
from onnx_tailor.passes.base import Pass
from onnx_tailor.passes.imported import census, change, imported

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnx_tailor.graph.model import TailorModel
    from onnx_tailor.report import Change, Skip
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
        before = census(model)
        proto, weights = to_placeholders(model)
        graph = gs.import_onnx(proto)
        try:
            function(graph)
            result = gs.export_onnx(graph, do_type_check=False)
        except Exception as error:  # the user's function may raise anything
            if PREFIX in str(error):
                what = "reads a weight, which stays in its file; let it edit the graph alone"
                raise ModelError(f"{model.path}: {self.function} {what}") from error
            raise ModelError(f"{model.path}: {self.function} failed: {type(error).__name__}: {error}") from error
        for key in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
            setattr(result, key, getattr(proto, key))
        result.metadata_props.extend(proto.metadata_props)
        model.ir_model = from_placeholders(model, result, weights)
        model.forget_names()
        yield change(self.function, before, model)

    def _function(self) -> Callable[[gs.Graph], None]:
        found = imported(self.function, "function")
        if not callable(found):
            raise OptionError(f"function {self.function!r} is no function", key=("function",))
        return found
