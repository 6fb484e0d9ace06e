"""How kernels are compiled, and kept on disk for the next start."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# numba ships no types.

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

_BARE: dict[str, Any] = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
kernel: Any = njit(**_BARE)
"""Compiles a function that other kernels call."""
inlined: Any = njit(forceinline=True, **_BARE)
"""Compiles a function of a few operations, which LLVM is to put into its callers."""


def entry(make: Callable[[str], Callable[..., Any]]) -> Any:
    """Compile the function that `make(digest)` returns, which Python calls, and keep the machine code on disk.

    numba keeps code until the function's own file changes, although it holds all kernels that the function calls. So
    the function is to be a closure over `digest`, which numba compares as well and which stands for all their files.
    """
    function = make(_digest())
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder to write to: compile at every start
        return njit(nogil=True)(function)


@cache
def _digest() -> str:
    """Return a hash of every file of this folder."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
