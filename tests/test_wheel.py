"""The wheel, built through the source distribution as an installer would: one package, nothing forgotten."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_INSTALLED = {"tests", "benchmarks", "docs", "examples"}


def test_the_wheel_holds_the_whole_package_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    sources = [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()]
    hidden = {path for path in sources if path.parts[0].startswith(".") or path.parts[0] in NOT_INSTALLED}
    files = {
        path for path in sources if path not in hidden and (len(path.parts) > 1 or path.suffix in {".py", ".typed"})
    }
    assert names == {f"onnx_tailor/{path.as_posix()}" for path in files}


def test_every_top_level_name_is_declared() -> None:
    """A module that the wheel's list forgets would be missing after installation only."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - NOT_INSTALLED
    modules = {path.name for path in ROOT.glob("*.py")} | {"py.typed"}
    assert set(declared["only-include"]) == packages | modules
