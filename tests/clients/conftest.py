"""The clients' environments, which `make clients` builds; without them the tests here are skipped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
Client = Callable[..., list[dict[str, Any]]]
"""Is given what its script asks for and returns what it printed, one result a folder."""


def _ask(program: Path | str, script: str) -> Client:
    def ask(**asked: Any) -> list[dict[str, Any]]:
        command = [str(program), str(HERE / script), json.dumps(asked, default=str)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return ask


def _python(name: str) -> Client:
    python = ROOT / ".clients" / name / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        pytest.skip(f"{python.relative_to(ROOT)} is missing; `make clients` makes it")
    return _ask(python, f"run_{name}.py")


@pytest.fixture(scope="session")
def genai() -> Client:
    return _python("genai")


@pytest.fixture(scope="session")
def optimum() -> Client:
    return _python("optimum")


@pytest.fixture(scope="session")
def node() -> str:
    program = shutil.which("node")
    if program is None:
        pytest.skip("there is no program node")
    if not (HERE / "node_modules").exists():
        pytest.skip("tests/clients/node_modules is missing; `make clients` makes it")
    return program


@pytest.fixture(scope="session")
def transformers_js(node: str) -> Client:
    return _ask(node, "run_transformers_js.mjs")
