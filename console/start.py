"""What makes a command start and end sooner: rarely needed libraries, searches, turns of the threads."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path

from onnx_tailor.console.lazy import lazy

__all__ = ["start"]

_COLLECT_AFTER = 500_000
"""Objects made since the last search for cycles. A graph is some hundred thousand objects that all live to the end;
with Python's own 700, a search through them would begin again and again."""
_TURN = 0.0005
"""Seconds for which a thread keeps the interpreter while another waits for it, a tenth of Python's own: a thread that
hashes or computes asks for it between two long calls without it, each time beside the one that works on the graph."""


def start() -> None:
    """Prepare this process, which is a command's own."""
    gc.set_threshold(_COLLECT_AFTER)
    atexit.register(gc.freeze)  # the memory goes back as a whole; a last search for cycles would take half a second
    sys.setswitchinterval(_TURN)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # it would look through every installed package for some
    _forgo_algebra()


def _forgo_algebra() -> None:
    """Let onnx_ir load sympy when it first computes with symbolic dimensions, and not before."""
    package, algebra = find_spec("onnx_ir"), find_spec("sympy")
    if package is None or package.origin is None or algebra is None:
        return
    lazy("sympy", algebra)
    name = "_symbolic_shapes"  # reads attributes of sympy when it is loaded
    file = Path(package.origin).with_name(f"{name}.py")
    if file.is_file():
        lazy(f"onnx_ir.{name}", spec_from_file_location(f"onnx_ir.{name}", file))
