"""The first run on a machine compiles the kernels: it says so, and the forecast has room for it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import handmade
import pytest
from rich.console import Console

import onnx_tailor as ot
from onnx_tailor.console.progress import Bar, Lines
from onnx_tailor.output import forecast
from onnx_tailor.progress import Silent, shows_compiling
from onnx_tailor.quant import compiling, machine_code

if TYPE_CHECKING:
    from onnx_tailor.progress import Progress

SAID = "compiling kernels, once on this machine"
RUN = (
    "import resource, sys; from onnx_tailor.cli import main\n"
    "try: main()\n"
    "finally: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)"
)


class Watch(Silent):
    """Keeps what it is told about waiting."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def wait(self, what: str) -> None:
        self.told.append(what)

    def go_on(self) -> None:
        self.told.append("on")


def test_one_thread_compiles_while_others_wait_and_it_is_said_once() -> None:
    watch = Watch()
    inside, leave = threading.Barrier(3), threading.Event()

    def work() -> None:
        with compiling.compiling():
            inside.wait()
            leave.wait()

    with shows_compiling(watch):
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        inside.wait()
        assert watch.told == [SAID]
        leave.set()
        for thread in threads:
            thread.join()
        assert watch.told == [SAID, "on"]
    with compiling.compiling():
        pass
    assert watch.told == [SAID, "on"]


def test_what_is_found_on_the_disk_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_code.kernel()
    watch = Watch()
    with shows_compiling(watch):
        assert machine_code._kernel.__wrapped__() is not None
        assert watch.told == []
        code = machine_code._kept(machine_code._key())
        monkeypatch.setattr(machine_code, "_kept", lambda key: None)
        monkeypatch.setattr(machine_code, "_files", list)
        monkeypatch.setattr(machine_code, "_compiled", lambda: code)
        assert machine_code._kernel.__wrapped__() is not None
    assert watch.told == [SAID, "on"]


def test_a_progress_that_knows_no_waiting_is_left_alone() -> None:
    class Plain:
        def start(self, what: str, total: int, unit: str = "bytes") -> None: ...
        def advance(self, count: int) -> None: ...
        def finish(self) -> None: ...

    plain: Progress = Plain()
    with shows_compiling(plain), compiling.compiling():
        pass


def test_lines_say_it_at_once_and_how_long_it_took() -> None:
    now = 0.0
    out = io.StringIO()
    lines = Lines(Console(file=out), clock=lambda: now)
    lines.start("writing", 100)
    with shows_compiling(lines), compiling.compiling():
        assert out.getvalue() == f"{SAID}\n"
        now = 12.3
    lines.advance(100)
    lines.finish()
    assert out.getvalue().splitlines()[:2] == [SAID, f"{SAID}: 12.3 s"]


def test_a_bar_shows_it_beside_the_phase_and_takes_it_away() -> None:
    out = io.StringIO()
    bar = Bar(Console(file=out, force_terminal=True, width=120))
    bar.start("writing", 100)
    with shows_compiling(bar), compiling.compiling():
        bar._bars.refresh()
        assert [task.description for task in bar._bars.tasks] == ["writing", SAID]
        assert SAID in out.getvalue()
    assert [task.description for task in bar._bars.tasks] == ["writing"]
    bar.advance(100)
    bar.finish()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak's unit is that of Linux")
def test_a_first_run_says_so_and_the_forecast_holds(tmp_path: Path) -> None:
    """A dry run compiles as a run does; what it leaves, the next one finds."""
    model = handmade.decoder(tmp_path / "in" / "model.onnx")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run() -> tuple[int, int, str]:
        arguments = [sys.executable, "-c", RUN, "run", "k-quant", str(model), "--dry-run", "--json"]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said, _, peak = done.stderr.rpartition("peak ")
        return int(json.loads(done.stdout)["forecast"]["memory_bytes"]), int(peak), said

    first, second = run(), run()
    assert SAID in first[2]
    assert SAID not in second[2]
    for expected, peak, _ in (first, second):
        assert peak <= expected
    assert first[0] - second[0] > (forecast._COMPILED - forecast._LOADED) // 2


@pytest.mark.parametrize(("recipe", "counted"), [("tie", 0), ("rtn", forecast._COMPILED)])
def test_kernels_count_where_something_is_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, counted: int
) -> None:
    model = handmade.decoder(tmp_path / "in" / "model.onnx")
    monkeypatch.setattr(machine_code, "is_loaded", lambda: False)
    monkeypatch.setattr(machine_code, "is_kept", lambda: False)
    found: list[int] = []
    monkeypatch.setattr(forecast, "_kernels", lambda job, own=forecast._kernels: found.append(own(job)) or found[-1])
    assert ot.run(recipe, model, None, dry_run=True).forecast is not None
    assert found == [counted]
