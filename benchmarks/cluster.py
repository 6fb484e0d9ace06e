"""Measure `run` on a Dask cluster of local workers against threads of one process, on a synthetic model.

Every worker is a process with one thread. What is timed is the phase in which weights are computed and written, and the
whole run; processor time is that of all processes together, and means something on a busy machine too. The bytes must
be those of the threads, or it ends with status 1. Linux only; needs the extra `cluster`.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import distributed

import onnx_tailor
from onnx_tailor.progress import Silent


class Phases(Silent):
    """A progress that notes when each phase begins."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    def start(self, what: str, total: int, unit: str = "bytes") -> None:  # noqa: ARG002  # the interface
        """Note the time."""
        self.began[what] = time.perf_counter()


def main() -> None:
    """Print a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=float, default=400e6)
    parser.add_argument("--recipe", default="k-quant")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-cluster-", dir=options.folder) as scratch:
        rows = _measure(options, Path(scratch))
    if options.json:
        print(json.dumps({"load": load, "rows": rows}))
        return
    print(f"others' load on the machine before: {load:.1f}")
    for row in rows:
        base = next(each for each in rows if each["who"] == row["who"])
        speed = base["writing_s"] / row["writing_s"]
        print(
            f"{row['who']:8} {row['count']:2}  writing {row['writing_s']:6.2f} s, {speed:4.2f} times the speed of one; "
            f"whole run {row['whole_s']:6.2f} s, processor time {row['processor_s']:6.2f} s"
        )


def _measure(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    model = scratch / "in" / "model.onnx"
    maker = Path(__file__).parent / "synthetic.py"
    subprocess.run([sys.executable, maker, model, str(int(options.weights))], check=True)
    rows = []
    for count in options.workers:
        with _processors(count):
            run = partial(_run, options.recipe, model, scratch / "threads", "threads")
            run()  # this process loads numba
            rows.append(_row("threads", count, [(*run(), time.process_time() - before) for before in _clock(options)]))
    for count in options.workers:
        with distributed.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0") as cluster:
            where = cluster.scheduler_address.replace("tcp://", "dask://")
            run = partial(_run, options.recipe, model, scratch / "out", where)
            run()  # the workers load numba
            with distributed.Client(cluster, set_as_default=False) as client:
                used = partial(_used, client)
                found = [(*run(), used() - before) for before in _clock(options, used)]
            rows.append(_row("workers", count, found))
        for name in ("model.onnx", "model.onnx.data"):
            if not filecmp.cmp(scratch / "out" / name, scratch / "threads" / name, shallow=False):
                sys.exit(f"{name} is not what threads write")
    return rows


@contextmanager
def _processors(count: int) -> Iterator[None]:
    """Let this process use no more than so many: as many threads will work."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _clock(options: argparse.Namespace, used: Callable[[], float] = time.process_time) -> Iterator[float]:
    """Yield the processor time used so far, once for each run."""
    for _ in range(options.repeat):
        yield used()


def _used(client: distributed.Client) -> float:
    """Return the processor time of this process and of the workers."""
    return time.process_time() + sum(client.run(time.process_time).values())


def _row(who: str, count: int, found: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Return the run whose writing took the median time."""
    writing, whole, processor = sorted(found)[len(found) // 2]
    return {"who": who, "count": count, "writing_s": writing, "whole_s": whole, "processor_s": processor}


def _run(recipe: str, model: Path, out: Path, executor: str) -> tuple[float, float]:
    """Return the seconds of writing, and of the whole run."""
    shutil.rmtree(out, ignore_errors=True)
    phases, started = Phases(), time.perf_counter()
    onnx_tailor.run(recipe, model, out, executor=executor, progress=phases)
    return phases.began["checking"] - phases.began["writing"], time.perf_counter() - started


if __name__ == "__main__":
    main()
