"""Other people's code in a recipe, named as `package.module:name`: how it is found, and what it did to the graph."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import TYPE_CHECKING

from onnx_tailor.errors import OptionError
from onnx_tailor.report import Change

if TYPE_CHECKING:
    from onnx_tailor.graph.model import TailorModel


def imported(reference: str, option: str) -> object:
    """Return what `package.module:name` names. Importing a module runs it: it is trusted as installed code is.

    Raises:
        OptionError: no such module or name; `option` is the one at fault.
    """
    module, _, name = reference.partition(":")
    try:
        found: object = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(
            f"{option} {reference!r} cannot be imported ({error}); write it as package.module:name", key=(option,)
        ) from error
    return found


def census(model: TailorModel) -> Counter[str]:
    """Count the operators of all graphs."""
    return Counter(node.op_type for node in model.nodes())


def change(where: str, before: Counter[str], model: TailorModel) -> Change:
    """Report what somebody's function did to the model, as far as operators can tell."""
    after = census(model)
    changed = {op: after[op] - before[op] for op in sorted(before.keys() | after.keys()) if after[op] != before[op]}
    what = ", ".join(f"{count:+d} {op}" for op, count in changed.items()) or "the same operators as before"
    return Change(where=where, what=what, details={"operators": changed})
