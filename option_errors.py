"""What pydantic found wrong with a pass's options, as sentences that stand at a place in the recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import GenericAlias
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from onnx_tailor.spelling import nearest
from onnx_tailor.yaml_tree import Position, Problem, Tree

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from onnx_tailor.passes.base import Pass

__all__ = ["build", "describe", "listed", "show"]

_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "none_required": "null",
    "string_type": "text",
    "tuple_type": "a list",
}
_SHOWN = 60
"""Characters of an offending value that a message quotes."""


def build(cls: type[Pass], options: object) -> Pass:
    """Return the pass with these options, a mapping, checked strictly against the types of its fields.

    Raises:
        ValidationError: a type or a key is wrong.
        OptionError: the pass refuses a value.

    """
    return _adapter(cls).validate_json(json.dumps([options]))[0]


@cache
def _adapter(cls: type[Pass]) -> TypeAdapter[tuple[Pass]]:
    """Return what checks a pass's options; made once for each pass, however often a recipe names it."""
    # A dataclass takes no configuration from outside, but inherits that of what holds it; in JSON mode
    # "strict" lets a mapping become a dataclass and still takes no "32" for 32.
    config = ConfigDict(extra="forbid", strict=True)
    holder: Any = GenericAlias(tuple, (cls,))
    return TypeAdapter(holder, config=config)


def show(value: object) -> str:
    """Return the value as it would stand in YAML's flow style, cut to a readable length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = f"'{text}'" if isinstance(value, str) else text
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def listed(words: Sequence[str]) -> str:
    """Return "a, b or c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


@dataclass(frozen=True)
class _Place:
    """Where a pydantic error points, in terms of the recipe."""

    path: tuple[str | int, ...]
    tree: Tree
    position: Position
    """Of the key where the key is wrong, and of the value otherwise."""
    union: str
    """The last union branch on the way, which is no part of the recipe; "" for none."""


def describe(error: ValidationError, cls: type[Pass], options: Tree, position: Position) -> Iterator[Problem]:
    """Yield one problem for each place that the error names; `position` is that of the pass's name."""
    expected: dict[tuple[str | int, ...], tuple[_Place, list[str]]] = {}
    for detail in error.errors(include_url=False):
        kind = detail["type"]
        place = _find(options, position, detail["loc"][1:], key_is_wrong=kind == "unexpected_keyword_argument")
        mapping = isinstance(place.tree.content, Mapping)
        if kind == "missing":
            yield Problem(position, f"{cls.name} needs the option {detail['loc'][-1]!r}")
        elif kind == "unexpected_keyword_argument":
            yield Problem(place.position, _unknown_key(place, cls))
        elif place.union and mapping == (kind != "dataclass_type") and kind in {*_EXPECTED, "literal_error"}:
            continue  # the branch of a union that this value was not meant for
        else:
            expected.setdefault(place.path, (place, []))[1].extend(_expected(detail))
    for place, words in expected.values():
        value = place.tree.plain()
        yield Problem(
            place.position,
            f"{_path(cls, place.path)} is {show(value)}; it must be {listed(list(dict.fromkeys(words)))}"
            f"{_advice(value, words)}",
        )


def _find(options: Tree, start: Position, loc: tuple[int | str, ...], *, key_is_wrong: bool) -> _Place:
    """Walk the parts of `loc` that the recipe has; the others are names of a union's branches."""
    tree, position, union = options, start, ""
    path: list[str | int] = []
    for part in loc:
        if isinstance(tree.content, tuple) and isinstance(part, int):
            tree = tree.content[part]
            position = tree.position
        elif (entry := tree.entries.get(str(part))) is not None:
            tree = entry.value
            position = entry.key if key_is_wrong else tree.position
        else:
            union = str(part)
            continue
        path.append(part)
    return _Place(tuple(path), tree, position, union)


def _expected(detail: ErrorDetails) -> list[str]:
    """Return what would have been right, each as a noun phrase."""
    if detail["type"] == "literal_error":
        return re.findall(r"[^\s',]+", detail["ctx"]["expected"].replace(" or ", ", "))
    said = detail["msg"].removeprefix("Input should be ")
    return [_EXPECTED.get(detail["type"], said)]


def _advice(value: object, words: Sequence[str]) -> str:
    """Suggest the nearest of `words`, or the boolean that an older YAML would have read."""
    if not isinstance(value, str):
        return ""
    if "true or false" in words:
        meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower())
        return f"; did you mean {meant}?" if meant else nearest(value, ("true", "false"))
    return nearest(value, words)


def _unknown_key(place: _Place, cls: type[Pass]) -> str:
    """Say that an option does not exist, and which one was meant or which there are."""
    key = str(place.path[-1])
    owner = next((c for c in _dataclasses(cls) if c.__name__ == place.union), cls)
    known = [field.name for field in fields(owner)]
    advice = nearest(key, known) or (f"; it has {', '.join(known)}" if known else "; it has none at all")
    return f"{_path(cls, place.path[:-1])} has no option {key!r}{advice}"


def _dataclasses(hint: Any) -> Iterator[Any]:
    """Yield the dataclasses that the fields of a dataclass, or the parts of a type, are made of."""
    if is_dataclass(hint):
        for field in fields(hint):
            inner = get_type_hints(hint)[field.name]
            for part in _dataclasses(inner):
                yield part
    else:
        for part in get_args(hint):
            if is_dataclass(part):
                yield part
            yield from _dataclasses(part)


def _path(cls: type[Pass], path: tuple[str | int, ...]) -> str:
    """Return "quantize.nodes.'*/q_proj/*'.bits"."""
    return ".".join([cls.name, *(p if isinstance(p, str) and p.isidentifier() else repr(p) for p in path)])
