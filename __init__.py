"""onnx-tailor: fit an ONNX language model that somebody else exported, without going back to PyTorch.

`onnx_tailor.api` says what is here; its parts load when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "ModelError",
    "OutputError",
    "TailorError",
    "UsageError",
    "__version__",
    "compare",
    "inspect",
    "load",
    "passes",
    "run",
    "verify",
]

if TYPE_CHECKING:
    from onnx_tailor import passes, verify
    from onnx_tailor.api import compare, inspect, load, run
    from onnx_tailor.errors import ModelError, OutputError, TailorError, UsageError

_WHERE = {
    **dict.fromkeys(("compare", "inspect", "load", "run"), "api"),
    **dict.fromkeys(("ModelError", "OutputError", "TailorError", "UsageError"), "errors"),
}


def __getattr__(name: str) -> Any:
    """Load what is asked for; see PEP 562."""
    if name in {"passes", "verify"}:
        return import_module(f"{__name__}.{name}")
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
