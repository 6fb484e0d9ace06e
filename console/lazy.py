"""Modules that load when they are first used, so that `--help` need not wait for ONNX Runtime."""

from __future__ import annotations

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["lazy"]


def lazy(name: str) -> ModuleType:
    """Return the module `name`, whose code runs when one of its attributes is first read.

    This is the recipe of importlib's documentation. The package around the module must be loaded already.

    Raises:
        ModuleNotFoundError: there is no such module.

    """
    if name in sys.modules:
        return sys.modules[name]
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    loader = LazyLoader(spec.loader)
    spec.loader = loader
    module = module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module
