"""The clients' environments, which `make clients` builds; without them the tests here are skipped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import javascript
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
Client = Callable[..., list[dict[str, Any]]]
"""Is given what its script asks for and returns what it printed, one result a folder."""


def _python(name: str) -> Client:
    python = ROOT / ".clients" / name / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        pytest.skip(f"{python.relative_to(ROOT)} is missing; `make clients` makes it")

    def ask(**asked: Any) -> list[dict[str, Any]]:
        command = [str(python), str(HERE / f"run_{name}.py"), json.dumps(asked, default=str)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return ask


@pytest.fixture(scope="session")
def genai() -> Client:
    return _python("genai")


@pytest.fixture(scope="session")
def optimum() -> Client:
    return _python("optimum")


@pytest.fixture(scope="session")
def transformers_js() -> Client:
    if why := javascript.missing():
        pytest.skip(why)

    def ask(**asked: Any) -> list[dict[str, Any]]:
        if asked["device"] != "cpu" and (why := javascript.missing(browser=True)):
            pytest.skip(why)
        return javascript.script("run_transformers_js.mjs", json.dumps(asked, default=str))

    return ask
