"""Kill `onnx-tailor run` with SIGKILL at random moments, a hundred times, and check that nothing is ever lost.

After every kill OUT must be absent, as it was before, or whole; the input must be untouched; and a resumed run must
write what a run writes that nobody kills, byte for byte, and leave nothing beside it. Linux and macOS.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-llama"


def main() -> None:
    """Kill and check, and print how often OUT was found in which state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=EXAMPLE / "model.onnx")
    parser.add_argument("--recipe", default="k-quant")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-kill-") as scratch:
        states = _kill(options, Path(scratch))
    print(f"{options.kills} kills, seed {options.seed}:", ", ".join(f"{n} x {s}" for s, n in sorted(states.items())))


def _kill(options: argparse.Namespace, scratch: Path) -> collections.Counter[str]:
    source, out, dice = scratch / "in", scratch / "out", random.Random(options.seed)
    shutil.copytree(options.model.parent, source)
    before = _contents(source)
    command = [sys.executable, "-m", "onnx_tailor", "run", options.recipe, str(source / options.model.name)]
    started = time.monotonic()
    subprocess.run([*command, "-o", str(scratch / "clean")], check=True, capture_output=True)
    longest = time.monotonic() - started
    expected = _contents(scratch / "clean")
    old = {"mine": b"mine"}
    states: collections.Counter[str] = collections.Counter()
    for _ in range(options.kills):
        if dice.random() < 0.3:  # something that is to be replaced
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            (out / "mine").write_bytes(b"mine")
        resume = ["--resume"] if dice.random() < 0.7 else []
        states[_run_and_kill([*command, "-o", str(out), "--overwrite", *resume], out, longest, dice)] += 1
        found = _contents(out)
        assert found in ({}, old, expected), f"OUT holds {sorted(found)}"
        states[f"OUT {'absent' if not found else 'as it was' if found == old else 'whole'}"] += 1
        assert _contents(source) == before, "the input was changed"
        if found == expected and dice.random() < 0.5:
            shutil.rmtree(out)
    subprocess.run([*command, "-o", str(out), "--overwrite", "--resume"], check=True, capture_output=True)
    assert _contents(out) == expected, "the resumed run wrote something else"
    assert sorted(file.name for file in scratch.iterdir()) == ["clean", "in", "out"], "something was left over"
    return states


def _run_and_kill(command: list[str], out: Path, longest: float, dice: random.Random) -> str:
    """Start a run, wait until it writes and then a random while, and kill it; return whether it had ended before."""
    work = out.parent / f".{out.name}.onnx-tailor" / "lock"
    work.unlink(missing_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not work.exists() and process.poll() is None:
        time.sleep(0.0005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(dice.random() ** 2 * min(longest, 4) / 2)
    process.kill()
    _, said = process.communicate()
    assert process.returncode in {0, -9}, said
    return "ended before" if process.returncode == 0 else "killed"


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


if __name__ == "__main__":
    main()
