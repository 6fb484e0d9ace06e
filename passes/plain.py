"""A pass's options as a recipe writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import PurePath
from typing import Any


def plain(value: object) -> object:
    """Return a pass, or a part of its options, as the mappings, lists, texts and numbers that a recipe has.

    Options that are as they are by default are left out.

    Raises:
        TypeError: it holds something that a recipe cannot.
    """
    if is_dataclass(value) and not isinstance(value, type):
        given = ((each.name, getattr(value, each.name), _default(each)) for each in fields(value))
        return {name: plain(own) for name, own, default in given if own != default}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{value!r} cannot stand in a recipe")


def _default(field: Field[Any]) -> object:
    return field.default_factory() if field.default_factory is not MISSING else field.default
