"""docs/write-a-pass.md, followed to the letter; and packages whose passes cannot be had."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onnx_tailor.passes import OWN, plugins

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "write-a-pass.md"
EXAMPLE = ROOT / "examples" / "tiny-llama"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files in a folder, and the package installed into `site` below it."""
    folder = tmp_path_factory.mktemp("last-logits")
    files = re.findall(r"`([\w.-]+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert [name for name, _ in files] == ["pyproject.toml", "last_logits.py", "recipe.yaml", "test_last_logits.py"]
    for name, text in files:
        (folder / name).write_text(text, encoding="utf-8")
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    return folder


@pytest.fixture
def call(package: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    paths = [str(package / "site"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True, check=False)

    return run


def test_the_pass_is_found_and_described(call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    shown = call("-m", "onnx_tailor", "passes", "last-logits")
    assert shown.returncode == 0, shown.stderr
    assert "keep: whole number  (default 1)" in shown.stdout
    assert "How many positions" in shown.stdout


def test_the_pass_runs_in_a_recipe(call: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = call("-m", "onnx_tailor", "run", "recipe.yaml", str(EXAMPLE), "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.onnx").exists()


def test_its_own_test_passes(call: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = call("test_last_logits.py", str(EXAMPLE / "model.onnx"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all is well\n"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("mine", "no_such_module:Pass", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("mine", "os:path", "is no Pass (os:path)"),
        ("mine", "onnx_tailor.passes:Quantize", "calls itself 'quantize'"),
        ("quantize", "onnx_tailor.passes:Quantize", "has a name that is taken"),
    ],
)
def test_a_broken_package_is_named_when_its_pass_is_used(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    point = EntryPoint(name, value, plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == plugins.GROUP else [])
    found, broken = plugins.discover(OWN)
    assert found == {}
    assert broken == {name: f"{name!r}, a pass of the package {value}, {reason}"}


def test_the_recipe_says_why_a_pass_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_tailor import recipe
    from onnx_tailor.errors import UsageError

    monkeypatch.setitem(recipe.BROKEN, "mine", "'mine', a pass of the package p, cannot be imported: X: y")
    path = tmp_path / "r.yaml"
    path.write_text("recipe: 1\npasses:\n  - mine\n")
    with pytest.raises(
        UsageError, match=r"r\.yaml:3:5: 'mine', a pass of the package p, cannot be imported: X: y; mend"
    ):
        recipe.load(str(path))
