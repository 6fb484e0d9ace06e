"""Modules that load when they are first used, so that `--help` need not wait for ONNX Runtime."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

__all__ = ["lazy"]

_loading = RLock()


class _Waiting(ModuleType):
    """A module whose code has not run. importlib's own LazyLoader runs it at `import` already, before any use."""

    def __getattr__(self, name: str) -> Any:
        """Run the code, which makes this an ordinary module, and return the attribute."""
        with _loading:
            if type(self) is _Waiting:
                assert self.__spec__ is not None
                assert self.__spec__.loader is not None
                self.__class__ = ModuleType  # type: ignore[assignment]  # what importlib does as well
                self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def lazy(name: str, spec: ModuleSpec | None = None) -> ModuleType:
    """Return the module `name`, whose code runs when one of its attributes is first read.

    Without a `spec`, the package around the module is loaded at once.

    Raises:
        ModuleNotFoundError: there is no such module.

    """
    if name in sys.modules:
        return sys.modules[name]
    spec = spec or find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = module_from_spec(spec)
    module.__class__ = _Waiting
    sys.modules[name] = module
    return module
