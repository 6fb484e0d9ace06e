"""The pages say what the program does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from onnx_tailor.console.options import options
from onnx_tailor.passes import PASSES

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*/*.md")]
)


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_and_option_is_described(name: str) -> None:
    pages = (ROOT / "docs" / "passes.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", pages, flags=re.MULTILINE)
    (section,) = [text for text in sections if text.splitlines()[0] == name]
    missing = [option.name for option in options(PASSES[name]) if f"| `{option.name}` |" not in section]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not broken


def test_the_readme_names_every_dependency_for_a_runtime_of_ones_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {match[0] for each in project["dependencies"] if (match := re.match(r"[A-Za-z0-9_.-]+", each))}
    line = re.search(r"pip install blake3.*?(?=```)", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert line
    assert set(line[0].replace("\\", "").split()[2:]) == names - {"onnxruntime", "onnxruntime-gpu"}


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    declared = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for extra in project["project"].get("optional-dependencies", {}).values():
        declared += extra
    names = [re.match(r"[A-Za-z0-9_.-]+", each) for each in declared]
    assert not [name[0] for name in names if name and name[0] not in listed]


def test_every_room_of_the_house_is_described() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert not [room for room in sorted(rooms) if f"`{room}/`" not in page]
