"""Run a model that was rewritten, without writing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_tailor.graph.file.watch import serialize, weights_folder
from onnx_tailor.graph.model import TailorModel

if TYPE_CHECKING:
    from onnx_tailor.verify.session import LanguageModel


def runner(model: TailorModel) -> LanguageModel:
    """Return `model`, which must not be used afterwards, in ONNX Runtime.

    Raises:
        ModelError: it does not load, or what was rewritten does not fit into a graph.
    """
    from onnx_tailor.verify.session import LanguageModel  # ONNX Runtime takes long to import

    folder = weights_folder(model)
    return LanguageModel(model.path, graph=serialize(model), folder=folder)
