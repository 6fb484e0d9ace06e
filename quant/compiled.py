"""How kernels are compiled: functions that call each other, and for which `entry` is the way in."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# numba ships no types.

from __future__ import annotations

from typing import Any

from numba import njit

# Without numba's own runtime, so that nothing in a kernel can allocate and the machine code needs nothing of numba.
_BARE: dict[str, Any] = {
    "nogil": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,
    "error_model": "numpy",
}
kernel: Any = njit(**_BARE)
"""Compiles a function that other kernels call."""
inlined: Any = njit(forceinline=True, **_BARE)
"""Compiles a function of a few operations, which LLVM is to put into its callers."""
