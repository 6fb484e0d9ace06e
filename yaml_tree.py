"""YAML as a tree that knows the file, line and column of every key and value.

Nothing but plain data comes out: tags that would build objects are refused, and aliases cannot make a small
file expand into a large one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as YamlNode

from onnx_tailor.errors import UsageError

__all__ = ["Entry", "Position", "Problem", "Tree", "read", "refuse"]

MAX_NODES = 10_000
"""Values in one file once its aliases are expanded; no recipe comes near it."""
MAX_DEPTH = 32
MAX_MESSAGE = 1000
"""Characters of one message: a value from the file may be as long as the file."""
MAX_PROBLEMS = 50
"""Problems that are told at once."""
_PLAIN_SIZE = 1 << 16
"""Characters of a text that is parsed at once; a larger one is first looked through, at half the cost, for its size."""

_TOO_LARGE = "the file holds too many or too deeply nested values for a recipe"
_CORE = "tag:yaml.org,2002:"


@dataclass(frozen=True, order=True)
class Position:
    """A place in a text, written `file:line:column`."""

    file: str
    line: int
    """1 for the first line."""
    column: int
    """1 for the first character."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a text, and where."""

    position: Position
    message: str

    def __str__(self) -> str:
        shown = self.message if len(self.message) <= MAX_MESSAGE else f"{self.message[:MAX_MESSAGE]}..."
        return f"{self.position}: {shown}"


@dataclass(frozen=True)
class Tree:
    """A value, its place, and inside a list or a mapping the same for every part."""

    position: Position
    content: str | int | float | bool | tuple[Tree, ...] | Mapping[str, Entry] | None

    def plain(self) -> Any:
        """Return the value alone: dict, list, str, int, float, bool or None."""
        if isinstance(self.content, Mapping):
            return {key: entry.value.plain() for key, entry in self.content.items()}
        if isinstance(self.content, tuple):
            return [item.plain() for item in self.content]
        return self.content

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The entries of a mapping; none for any other value."""
        return self.content if isinstance(self.content, Mapping) else {}


@dataclass(frozen=True)
class Entry:
    """A mapping's value and the place of its key."""

    key: Position
    value: Tree


def refuse(problems: list[Problem]) -> UsageError:
    """Return the error that tells all problems, one a line, in the order of the file."""
    ordered = dict.fromkeys(sorted(problems, key=lambda problem: problem.position))
    lines = [str(problem) for problem in itertools.islice(ordered, MAX_PROBLEMS)]
    if len(ordered) > MAX_PROBLEMS:
        lines.append(f"and {len(ordered) - MAX_PROBLEMS} more problems")
    return UsageError("\n".join(lines))


def read(text: str, file: str) -> Tree:
    """Parse `text`; an empty one is null.

    Raises:
        UsageError: the text is no YAML, repeats a key, holds a tag or a key that is no text, or is too large.

    """
    try:
        if len(text) > _PLAIN_SIZE:
            _require_few_events(text, file)
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = Position(file, mark.line + 1, mark.column + 1) if mark else Position(file, 1, 1)
        clause = ", ".join(part for part in (error.context, error.problem) if part)
        if "alias" in clause:
            clause += "; a pattern that begins with * stands in quotes"
        raise refuse([Problem(position, f"this is not YAML: {clause}")]) from error
    except YAMLError as error:
        clause = str(error).splitlines()[0]
        raise refuse([Problem(Position(file, 1, 1), f"this is not YAML: {clause}")]) from error
    except RecursionError as error:
        raise refuse([Problem(Position(file, 1, 1), "the values are nested too deeply")]) from error
    if root is None:
        return Tree(Position(file, 1, 1), None)
    reader = _Reader(file)
    tree = reader.tree(root, 0)
    if reader.problems:
        raise refuse(reader.problems)
    return tree


def _require_few_events(text: str, file: str) -> None:
    """Refuse what holds too many values before all of them are in memory: a million keys take minutes."""
    depth = 0
    for number, event in enumerate(YAML(typ="safe", pure=True).parse(text)):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if number > 3 * MAX_NODES or depth > MAX_DEPTH:  # a list or a mapping has two events, one that it ends
            mark = event.start_mark
            raise refuse([Problem(Position(file, mark.line + 1, mark.column + 1), _TOO_LARGE)])


class _Reader:
    """Turns the library's nodes into a `Tree`, gathering what is wrong on the way."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.nodes = 0
        self.scalars = YAML(typ="safe", pure=True).constructor

    def tree(self, node: YamlNode, depth: int) -> Tree:
        """Convert one node, `depth` levels below the root."""
        position = self.position(node)
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise refuse([Problem(position, _TOO_LARGE)])
        if isinstance(node, MappingNode) and node.tag == f"{_CORE}map":
            return Tree(position, self.mapping(node, depth))
        if isinstance(node, SequenceNode) and node.tag == f"{_CORE}seq":
            return Tree(position, tuple(self.tree(item, depth + 1) for item in node.value))
        return Tree(position, self.scalar(node))

    def mapping(self, node: MappingNode, depth: int) -> dict[str, Entry]:
        """Convert a mapping's entries, refusing repeated keys and keys that are no strings."""
        entries: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            key = self.position(key_node)
            if not isinstance(key_node, ScalarNode) or key_node.tag not in {f"{_CORE}str", f"{_CORE}merge"}:
                shown = key_node.value if isinstance(key_node, ScalarNode) else "a list or mapping"
                self.problems.append(Problem(key, f"the key {shown} is not text; put it in quotes"))
                continue
            name = str(key_node.value)
            if name in entries:
                message = f"the key {name!r} is given twice; line {entries[name].key.line} has it already"
                self.problems.append(Problem(key, message))
                continue
            value = self.tree(value_node, depth + 1)
            # Where nothing is written, the library points at whatever comes next.
            missing = isinstance(value_node, ScalarNode) and not value_node.value and not value_node.style
            entries[name] = Entry(key, replace(value, position=key) if missing else value)
        return entries

    def scalar(self, node: YamlNode) -> str | int | float | bool | None:
        """Return a scalar's value, refusing every type that JSON lacks."""
        kind = str(node.tag).removeprefix(_CORE)
        if not isinstance(node, ScalarNode) or kind not in {"str", "int", "float", "bool", "null"}:
            advice = "put it in quotes" if kind == "timestamp" else "a recipe holds plain values only"
            self.problems.append(Problem(self.position(node), f"the YAML type {kind!r} is not allowed; {advice}"))
            return None
        try:
            value: str | int | float | bool | None = self.scalars.construct_object(node)
        except (ValueError, KeyError, YAMLError):
            message = f"{node.value!r} cannot be read as the YAML type {kind!r}"
            self.problems.append(Problem(self.position(node), message))
            return None
        return value if value is None or isinstance(value, str | bool) else _number(value)

    def position(self, node: YamlNode) -> Position:
        """Return where the node starts."""
        return Position(self.file, node.start_mark.line + 1, node.start_mark.column + 1)


def _number(value: int | float) -> int | float:
    """Return the number without the library's own subclass, which remembers how it was written."""
    return int(value) if isinstance(value, int) else float(value)
