"""The kernel as machine code, kept on disk: who finds it there need not import numba, which takes half a second."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import llvmlite.binding as llvm

from onnx_tailor.quant.compiling import compiling

__all__ = ["Kernel", "is_kept", "is_loaded", "kernel"]

Kernel = Callable[..., int]
"""Takes the address of a place for the result, that of one for what went wrong, and those of `entry`."""

_ADDRESSES = 13
"""Of arrays that `entry` takes, which cannot be asked: it imports numba."""
_lock = threading.Lock()


class _Linked(NamedTuple):
    function: Kernel
    engine: llvm.ExecutionEngine
    """Keeps the code in memory."""


class _Code(NamedTuple):
    symbol: str
    content: bytes
    """An object file."""


def kernel() -> Kernel:
    """Return the kernel, which is called without the interpreter's lock: from the disk, or compiled and kept there."""
    with _lock:
        return _kernel().function


@cache
def _kernel() -> _Linked:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    key = _key()
    code = _kept(key)
    if code is None:
        with compiling():
            code = _compiled()
        any(_write(file, key, code) for file in _files())
    return _linked(code)


def is_loaded() -> bool:
    """Whether this process holds the kernel already."""
    return _kernel.cache_info().currsize > 0


def is_kept() -> bool:
    """Whether the kernel need not be compiled, since its code is on the disk."""
    return _kept(_key()) is not None


def _kept(key: str) -> _Code | None:
    return next(filter(None, (_read(file, key) for file in _files())), None)


def _key() -> str:
    """Return a digest of all that the code depends on: kernels, compilers, their settings, and the processor."""
    package = find_spec("numba")
    assert package is not None
    assert package.origin is not None
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(package.origin).with_name("_version.py")]
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("NUMBA_"))
    machine = (llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    digest = hashlib.sha256(repr((llvmlite.__version__, machine, settings)).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    """Iterate over the places where the code may be kept: where numba is told to, beside this file, with the user's."""
    name = f"quantize_tile.{llvm.get_host_cpu_name()}.code"
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen) / name
        return
    yield Path(__file__).parent / "__pycache__" / name
    home = {"win32": os.environ.get("LOCALAPPDATA"), "darwin": "~/Library/Caches"}.get(sys.platform)
    yield Path(home or os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "onnx-tailor" / name


def _read(file: Path, key: str) -> _Code | None:
    """Return the code in a file, unless it is damaged or was made of anything else."""
    try:
        header, content = file.read_bytes().split(b"\n", 1)
        said = json.loads(header)
        if said["key"] == key and said["sha256"] == hashlib.sha256(content).hexdigest():
            return _Code(str(said["symbol"]), content)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _write(file: Path, key: str, code: _Code) -> bool:
    """Keep the code in a file, at once or not at all. Return whether that was possible."""
    header = {"key": key, "symbol": code.symbol, "sha256": hashlib.sha256(code.content).hexdigest()}
    own = file.with_name(f"{file.name}.{os.getpid()}")  # another process may be writing the same
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        own.write_bytes(json.dumps(header).encode() + b"\n" + code.content)
        own.replace(file)
    except OSError:
        with suppress(OSError):
            own.unlink(missing_ok=True)
        return False
    return True


def _compiled() -> _Code:
    from onnx_tailor.quant import entry  # numba takes long to import

    text, symbol = entry.assembly()
    return _Code(symbol, _machine().emit_object(llvm.parse_assembly(text)))


def _machine() -> Any:
    """Return the target that numba compiles for: this processor."""
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _linked(code: _Code) -> _Linked:
    """Load the code into this process."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code.content))
    engine.finalize_object()
    prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * (2 + _ADDRESSES))
    return _Linked(prototype(engine.get_function_address(code.symbol)), engine)
