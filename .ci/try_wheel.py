"""Install the wheel into an empty environment of each Python there is, and use it there: `python .ci/try_wheel.py`.

The Pythons are the arguments, or those of python3.11 to python3.14 that this machine has. Needs `build` and hatchling.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


def main() -> int:
    """Try each Python; return 1 where one fails or there is none."""
    pythons = sys.argv[1:] or [found for version in VERSIONS if (found := _python(version))]
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-wheel-") as folder:
        scratch = Path(folder)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(scratch), str(ROOT)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = scratch.glob("*.whl")
        for number, python in enumerate(pythons):
            _try(python, wheel, scratch / str(number))
    return 0 if pythons else 1


def _python(version: str) -> str | None:
    """Return a Python of this version that starts; a shim of pyenv may not, but its versions lie in a known place."""
    folders = [*os.get_exec_path(), *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin"))]
    for folder in folders:
        found = shutil.which(f"python{version}", path=folder)
        if found and subprocess.run([found, "-V"], capture_output=True, check=False).returncode == 0:
            return found
    print(f"python{version}: this machine has none, not tried")
    return None


def _try(python: str, wheel: Path, folder: Path) -> None:
    subprocess.run([python, "-m", "venv", str(folder / "env")], check=True)
    binaries = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([binaries / "python", "-m", "pip", "install", *quiet, str(wheel)], check=True)
    (folder / "work").mkdir()

    def call(*arguments: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [binaries / "onnx-tailor", *arguments],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=folder / "work",
            env=environment,
        ).stdout

    assert "inspect" in call("--help")
    assert json.loads(call("schema"))["$schema"].startswith("https://json-schema.org/draft/2020-12")
    report = json.loads(call("run", "k-quant", str(ROOT / "examples" / "tiny-llama"), "-o", "OUT", "--json"))
    assert report["after"]["file_bytes"] < report["before"]["file_bytes"] / 2
    assert call("check", "OUT")
    found = json.loads(call("verify", str(ROOT / "examples" / "tiny-llama"), "OUT", "--text", "bundled", "--json"))
    assert found["kl_mean"] < 0.1
    version = subprocess.run([binaries / "python", "-V"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    print(f"{version}: {wheel.name} installs, runs k-quant and verifies it (KL {found['kl_mean']:.4f})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
