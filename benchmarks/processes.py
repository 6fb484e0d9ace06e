"""What the benchmarks measure about one child process, and about a model's tokens a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Run", "json_of", "run", "seconds_of_a_token", "tailor"]

_TOKEN = """
import sys, time
from pathlib import Path
import numpy as np
from onnx_tailor.verify.session import LanguageModel
model, count = LanguageModel(Path(sys.argv[1])), int(sys.argv[2])
ids = np.arange(1, 33)[None]
cache = model.cache(model.prefill(ids), ids)
best = float("inf")
for token in range(count):
    started = time.perf_counter()
    _, cache = model.decode(np.array([[token + 40]]), cache)
    best = min(best, time.perf_counter() - started)
print(best)
"""


@dataclass(frozen=True)
class Run:
    """One child from start to end."""

    seconds: float
    cpu_seconds: float
    peak_rss: int
    """Bytes; at least this process's own, which Linux hands down to its children."""


def tailor(*arguments: object) -> list[str]:
    """Return the command line of onnx-tailor by this Python."""
    return [sys.executable, "-m", "onnx_tailor", *map(str, arguments)]


def run(command: list[str], name: str) -> Run:
    """Run a child to its end, or end with what it said."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{name} ended with {process.returncode}:\n{log.read().decode(errors='replace')[-4000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def json_of(command: list[str]) -> dict[str, Any]:
    """Return what a child prints with --json."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def seconds_of_a_token(model: Path, count: int = 16) -> float:
    """Return the shortest time of `count` decoded tokens after 32, in a child."""
    done = subprocess.run([sys.executable, "-c", _TOKEN, str(model), str(count)], check=True, stdout=subprocess.PIPE)
    return float(done.stdout)
