"""Seconds until a command that writes nothing has ended: --help, and inspect of a model, beside an empty Python."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from processes import run, tailor


def main() -> None:
    """Print the best of all rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeat", type=int, default=10)
    options = parser.parse_args()
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import onnx": [sys.executable, "-c", "import onnx"],
        "onnx-tailor --help": tailor("--help"),
        "onnx-tailor inspect": tailor("inspect", options.model),
    }
    best = dict.fromkeys(commands, (float("inf"), float("inf")))
    for _ in range(options.repeat):
        for name, command in commands.items():
            done = run(command, name)
            best[name] = min(best[name][0], done.seconds), min(best[name][1], done.cpu_seconds)
    print(f"{'':24}{'s':>8}{'CPU s':>8}")
    for name, (seconds, cpu) in best.items():
        print(f"{name:24}{seconds:8.2f}{cpu:8.2f}")


if __name__ == "__main__":
    main()
