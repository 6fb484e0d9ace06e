"""A recipe: the passes to run and their options, read from YAML.

Everything that is wrong with a recipe is told at once, one problem a line, each with file:line:column, the
offending value and the nearest right spelling.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PydanticUserError, ValidationError

from onnx_tailor import recipes
from onnx_tailor.errors import OptionError, UsageError
from onnx_tailor.option_errors import build, describe, listed, show
from onnx_tailor.passes import BROKEN, PASSES
from onnx_tailor.passes.plain import plain
from onnx_tailor.spelling import nearest
from onnx_tailor.targets import TARGETS
from onnx_tailor.yaml_tree import Entry, Position, Problem, Tree, read, refuse

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Pass

__all__ = ["Position", "Recipe", "Step", "explain", "load", "of_passes", "parse"]

Key = tuple[str | int, ...]

VERSION = 1
"""What `recipe:` must be."""
MAX_BYTES = 1 << 20
"""A larger file is a mistake, most likely the model given in the recipe's place."""
SETTINGS = "--set"
"""Stands for the file in the position of a value from the command line; the line counts the options."""


@dataclass(frozen=True)
class Step:
    """One pass of a recipe, with its options."""

    pass_: Pass
    locate: Callable[[Key], Position]
    """The place of an `OptionError`'s key: an option's value, the pattern of an entry of `nodes`, or, where
    the recipe does not give the key, the nearest thing around it."""


@dataclass(frozen=True)
class Recipe:
    """The passes to run, in order."""

    name: str
    target: str | None
    steps: tuple[Step, ...]
    text: str = ""
    """The file's text."""
    settings: tuple[str, ...] = ()
    """The settings that replaced options of it."""


@dataclass(frozen=True)
class _Item:
    """An item of `passes` before its options are checked."""

    name: str
    position: Position
    options: Tree

    def locate(self, key: Key) -> Position:
        """Return the place of `key`, or of its longest prefix that the recipe gives."""
        tree, position = self.options, self.position
        for depth, part in enumerate(key):
            if isinstance(tree.content, tuple):
                if not isinstance(part, int) or part >= len(tree.content):
                    break
                tree = tree.content[part]
                position = tree.position
                continue
            entry = tree.entries.get(str(part))
            if entry is None:
                break
            tree = entry.value
            # The keys below an option are the user's own patterns, and the pattern is what is wrong.
            position = entry.key if depth == 1 == len(key) - 1 else tree.position
        return position


def load(
    reference: str,
    *,
    settings: Sequence[str] = (),
    registry: Mapping[str, type[Pass]] = PASSES,
    targets: Mapping[str, object] = TARGETS,
) -> Recipe:
    """Read the recipe at a path, or the shipped one of that name; a shipped name wins over a file.

    Each of `settings` is "PASS.KEY=VALUE" with VALUE in YAML, and replaces an option of one of the recipe's
    passes. "PASS.nodes.PATTERN=VALUE" puts a rule in front of the recipe's own.

    Raises:
        UsageError: there is no such recipe, or it or a setting is wrong.

    """
    file, text = _source(reference)
    name = reference if reference in recipes.names() else Path(reference).stem
    found = parse(text, file, settings=settings, registry=registry, targets=targets)
    return replace(found, name=name)


def parse(
    text: str,
    file: str,
    *,
    settings: Sequence[str] = (),
    registry: Mapping[str, type[Pass]] = PASSES,
    targets: Mapping[str, object] = TARGETS,
) -> Recipe:
    """Read the text of a recipe; `file` is what messages call it.

    Raises:
        UsageError: the text or a setting is wrong.

    """
    tree = read(text, file)
    if not isinstance(tree.content, Mapping):
        found = "is empty" if tree.content is None else "is not a mapping"
        raise UsageError(f"{tree.position}: the recipe {found}; it needs the keys recipe and passes")
    problems = _header(tree, targets)
    items = _items(tree, registry, problems)
    if not problems:
        for number, setting in enumerate(settings, 1):
            items = _set(items, setting, number, registry)
    steps = [_step(item, registry[item.name], problems) for item in items]
    if problems:
        raise refuse(problems)
    target = tree.entries["target"].value.content if "target" in tree.entries else None
    return Recipe(
        name=file,
        target=target if isinstance(target, str) else None,
        steps=tuple(step for step in steps if step is not None),
        text=text,
        settings=tuple(settings),
    )


def of_passes(passes: Sequence[Pass]) -> Recipe:
    """Return the recipe of passes that Python made; a place in it is the number of a pass.

    Raises:
        UsageError: an option of a pass has a value that no recipe could give it.
    """

    def step(number: int, pass_: Pass) -> Step:
        position = Position("passes", number, 1)
        return Step(_checked(pass_, position), lambda _: position)

    return Recipe(name="passes", target=None, steps=tuple(step(n, each) for n, each in enumerate(passes, 1)))


def _checked(pass_: Pass, position: Position) -> Pass:
    """Return the pass as a recipe would give it: with types that Python did not check."""
    try:
        options = plain(pass_)
    except TypeError:  # a field that only Python can fill
        return pass_
    try:
        return build(type(pass_), options)
    except ValidationError as error:
        tree = read(json.dumps(options), position.file)
        problems = [replace(each, position=position) for each in describe(error, type(pass_), tree, position)]
        raise refuse(problems) from error
    except PydanticUserError:  # a field of a type that only Python knows
        return pass_
    except OptionError as error:
        raise UsageError(f"{position}: {pass_.name}: {error}") from error


def explain(error: OptionError, step: Step) -> UsageError:
    """Return the error with the place in the recipe where its option stands."""
    return UsageError(f"{step.locate(error.key)}: {step.pass_.name}: {error}")


def _source(reference: str) -> tuple[str, str]:
    """Return the file and the text of the recipe that `reference` names."""
    shipped = recipes.names()
    path = recipes.path(reference) if reference in shipped else Path(reference)
    if not path.is_file():
        if path.suffix or len(path.parts) > 1 or path.is_dir():
            what = "is a folder, not a recipe" if path.is_dir() else "does not exist"
            raise UsageError(f"the recipe {reference} {what}; give a YAML file or one of {', '.join(shipped)}")
        advice = nearest(reference, shipped) or f"; the shipped ones are {', '.join(shipped)}"
        raise UsageError(f"no recipe is called {reference!r}, and there is no such file{advice}")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path} is too large for a recipe; the recipe comes before the model")
    try:
        return str(path), path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8, so it is no recipe") from error
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read: {error.strerror}") from error


def _header(tree: Tree, targets: Mapping[str, object]) -> list[Problem]:
    """Check the keys of the document, all but the items of `passes`."""
    known = ("recipe", "target", "passes")
    problems = [
        Problem(
            entry.key,
            f"a recipe has no key {key!r}{nearest(key, known) or '; it has recipe, target and passes'}",
        )
        for key, entry in tree.entries.items()
        if key not in known
    ]
    problems += [
        Problem(tree.position, f"the recipe lacks the key {key!r}{example}")
        for key, example in (("recipe", f", as in recipe: {VERSION}"), ("passes", ", a list of passes"))
        if key not in tree.entries
    ]
    if version := tree.entries.get("recipe"):
        found = version.value.plain()
        if found != VERSION or isinstance(found, bool):
            message = f"recipe is {show(found)}; this onnx-tailor reads recipe: {VERSION}"
            problems.append(Problem(version.value.position, message))
    if target := tree.entries.get("target"):
        found = target.value.plain()
        if found not in (None, *targets):
            advice = nearest(found, tuple(targets)) if isinstance(found, str) else ""
            message = f"target is {show(found)}; it must be {listed(tuple(targets))}{advice}"
            problems.append(Problem(target.value.position, message))
    return problems


def _items(tree: Tree, registry: Mapping[str, type[Pass]], problems: list[Problem]) -> list[_Item]:
    """Return the items of `passes` that name a pass, adding to `problems` what is wrong with the others."""
    entry = tree.entries.get("passes")
    if entry is None:
        return []
    if not isinstance(entry.value.content, tuple) or not entry.value.content:
        message = f"passes is {show(entry.value.plain())}; it must be a list of at least one pass"
        problems.append(Problem(entry.value.position, message))
        return []
    items = []
    for part in entry.value.content:
        item = _item(part, problems)
        if item and item.name in BROKEN and item.name not in registry:
            problems.append(Problem(item.position, f"{BROKEN[item.name]}; mend or remove that package"))
        elif item and item.name not in registry:
            advice = nearest(item.name, tuple(registry)) or f"; the passes are {', '.join(registry)}"
            problems.append(Problem(item.position, f"no pass is called {item.name!r}{advice}"))
        elif item:
            items.append(item)
    return items


def _item(part: Tree, problems: list[Problem]) -> _Item | None:
    """Read one item of `passes`: a name, or a mapping of a name to its options."""
    if isinstance(part.content, str):
        return _Item(part.content, part.position, Tree(part.position, {}))
    if len(part.entries) == 1:
        ((name, entry),) = part.entries.items()
        if entry.value.content is None or isinstance(entry.value.content, Mapping):
            return _Item(name, entry.key, replace(entry.value, content=entry.value.entries))
        message = f"the options of {name} are {show(entry.value.plain())}; they must be a mapping"
        problems.append(Problem(entry.value.position, message))
        return None
    what = "several passes; indent the options below the pass's name, or give each pass a line"
    message = what if part.entries else f"{show(part.plain())}; it must be the name of a pass"
    problems.append(Problem(part.position, f"this item of passes is {message}"))
    return None


def _set(items: Sequence[_Item], setting: str, number: int, registry: Mapping[str, type[Pass]]) -> list[_Item]:
    """Return the items with the `number`-th setting, "PASS.KEY=VALUE", in place.

    Raises:
        UsageError: the setting has another form, or its pass is not in the recipe exactly once.

    """
    where = Position(SETTINGS, number, 1)
    target, equals, value = setting.partition("=")
    name, dot, key = target.partition(".")
    if not (equals and dot and name and key):
        message = f"{show(setting)} is no PASS.KEY=VALUE, as in quantize.bits=8"
        raise refuse([Problem(where, message)])
    found = [item for item in items if item.name == name]
    if len(found) != 1:
        known = tuple(dict.fromkeys(item.name for item in items))
        advice = nearest(name, known) or f"; it has {', '.join(known)}"
        message = (
            f"the recipe has no pass {name!r}{advice}"
            if not found
            else f"the recipe has {len(found)} passes {name!r}; edit a copy of it instead"
        )
        raise refuse([Problem(where, message)])
    # The padding gives the value the line and column that it has among the settings.
    tree = read("\n" * (number - 1) + " " * (len(target) + 1) + value, SETTINGS)
    option, _, pattern = key.partition(".")
    place = replace(where, column=len(name) + 2)
    rivals = {rival for group in registry[name].exclusive if option in group for rival in group} - {option}
    entries = found[0].options.entries
    old = {k: e for k, e in entries.items() if k not in rivals or e.key.file == SETTINGS}
    if pattern:
        rules = old[option].value.entries if option in old else {}
        pattern_place = replace(where, column=len(name) + len(option) + 3)
        tree = Tree(
            tree.position,
            {pattern: Entry(pattern_place, tree)} | {k: e for k, e in rules.items() if k != pattern},
        )
    changed = replace(found[0], options=replace(found[0].options, content={**old, option: Entry(place, tree)}))
    return [changed if item is found[0] else item for item in items]


def _at_recipe(built: Pass, item: _Item) -> Pass:
    """Return the pass with the relative paths among its options starting at the recipe's folder, where they exist."""
    moved = {}
    for option in fields(built):
        value, file = getattr(built, option.name), item.locate((option.name,)).file
        if isinstance(value, Path) and file != SETTINGS and (Path(file).parent / value).exists():
            moved[option.name] = Path(file).parent / value
    return replace(built, **moved)


def _step(item: _Item, cls: type[Pass], problems: list[Problem]) -> Step | None:
    """Build the pass of an item, adding to `problems` what is wrong with its options."""
    try:
        return Step(_at_recipe(build(cls, item.options.plain()), item), item.locate)
    except ValidationError as error:
        problems.extend(describe(error, cls, item.options, item.position))
    except OptionError as error:
        problems.append(Problem(item.locate(error.key), f"{cls.name}: {error}"))
    return None
