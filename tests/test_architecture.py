"""The table of docs/architecture.md: which rooms there are, and that each knows only those below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
ENTRANCES = {"__init__.py", "__main__.py"}
"""They lead to all rooms."""


def table() -> list[list[str]]:
    """Return the rooms of each line, from the top."""
    text = (HOUSE / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = text.partition("| room |")[2].partition("\n\n")[0].splitlines()[2:]
    return [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in lines]


FLOORS = {room: floor for floor, rooms in enumerate(table()) for room in rooms}


def room_of(file: Path) -> str | None:
    """Return the room in which a file lies, relative to the house; None where it lies in none."""
    folders = [f"{folder.as_posix()}/" for folder in file.parents if folder != Path()]
    return next((room for room in (file.as_posix(), *folders) if room in FLOORS), None)


def sources() -> list[Path]:
    text = (HOUSE / "pyproject.toml").read_text(encoding="utf-8")
    included = re.findall(r'"([^"]+)"', text.partition("only-include = [")[2].partition("]")[0])
    files = (HOUSE / each for each in included)
    found = (file for each in files for file in (each.rglob("*.py") if each.is_dir() else [each]))
    return sorted(file.relative_to(HOUSE) for file in found if file.suffix == ".py")


def imported(file: Path) -> Iterator[Path]:
    """Yield the files of the house that a file imports anywhere."""
    for node in ast.walk(ast.parse((HOUSE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnx_tailor"):
            base = Path(*(node.module or "").split(".")[1:])
            for name in node.names:
                tried = (base / f"{name.name}.py", base / name.name / "__init__.py", Path(f"{base.as_posix()}.py"))
                yield next((each for each in tried if (HOUSE / each).is_file()), base / "__init__.py")


@pytest.mark.parametrize("file", [file for file in sources() if file.name not in ENTRANCES or file.parent != Path()])
def test_a_room_knows_only_those_below_it(file: Path) -> None:
    own = room_of(file)
    assert own is not None, f"{file} is in no room of docs/architecture.md"
    for other in imported(file):
        if other == Path("__init__.py"):  # the version
            continue
        there = room_of(other)
        assert there is not None, f"{file} imports {other}, which is in no room"
        assert there == own or FLOORS[there] >= FLOORS[own], f"{file} imports {other} of a room above its own"


def test_every_room_is_there() -> None:
    assert len(FLOORS) > 20
    assert [room for room in FLOORS if not (HOUSE / room).exists()] == []
