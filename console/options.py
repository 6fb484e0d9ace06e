"""The passes' options, read from their dataclasses: type, default and the docstring below the field."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from textwrap import dedent
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Pass

__all__ = ["Option", "as_text", "description", "nested", "options", "summary"]

_PLAIN = {bool: "true | false", int: "whole number", float: "number", str: "text", Path: "path", NoneType: "null"}


@dataclass(frozen=True)
class Option:
    """One option of a pass, or one key of a mapping among its options."""

    name: str
    values: str
    """What the option takes, as "rtn | k_quant"."""
    default: str | None
    """The default in YAML, or None where the option must be given."""
    help: str


def summary(cls: type[Pass]) -> str:
    """Return the first line of the pass's docstring."""
    return description(cls).partition("\n")[0]


def description(cls: type[Pass]) -> str:
    """Return the pass's whole docstring."""
    return inspect.getdoc(cls) or ""


def options(cls: type[Any]) -> tuple[Option, ...]:
    """Return the options of a pass, or the keys of a dataclass among them, in the order of the source."""
    hints = get_type_hints(cls)
    texts = _field_docstrings(cls)
    return tuple(Option(f.name, as_text(hints[f.name]), _default(f), texts.get(f.name, "")) for f in fields(cls))


def nested(cls: type[Any]) -> tuple[type[Any], ...]:
    """Return the dataclasses that the options of `cls` may hold."""
    found: dict[type[Any], None] = {}
    queue = list(get_type_hints(cls).values())
    while queue:
        hint = queue.pop()
        if is_dataclass(hint) and isinstance(hint, type):
            found[hint] = None
        queue.extend(part for part in get_args(hint) if not isinstance(part, str | int))
    return tuple(found)


def as_text(hint: Any) -> str:
    """Return a type as the values that a recipe may give."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(str(part) for part in parts)
    if origin in (Union, UnionType):
        return " | ".join(as_text(part) for part in parts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {as_text(parts[0])} to {as_text(parts[1])}"
    if origin in (tuple, list):
        return f"list of {as_text(parts[0])}"
    if is_dataclass(hint):
        return "{" + ", ".join(field.name for field in fields(hint)) + "}"
    return _PLAIN.get(hint, str(hint))


def _default(field: Field[Any]) -> str | None:
    """Return the default as YAML would have it."""
    if field.default_factory is not MISSING:
        return json.dumps(field.default_factory())
    if field.default is MISSING:
        return None
    return field.default if isinstance(field.default, str) else json.dumps(field.default)


def _field_docstrings(cls: type[Any]) -> dict[str, str]:
    """Return the string literal below each field that has one, as one paragraph."""
    (definition,) = ast.parse(dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[field.target.id] = " ".join(below.value.value.split())
    return found
