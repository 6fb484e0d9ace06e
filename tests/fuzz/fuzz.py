"""Mutate models and recipes, and hold every command to its promises. Not part of the test suite.

    python tests/fuzz/fuzz.py [--files 100000] [--seed 0] [--workers 1] [--seconds 3600] [--kind model|recipe]

A mutated file may be read or refused, but never: an exception other than our own, a traceback, a warning of a library,
an error of several lines, more than 10 s of processor time or 512 MiB of memory, an output after a refusal, a changed
input, a file opened outside the model's folder (every `open` of the process is watched), a crash of the interpreter,
or an output that ONNX Runtime takes for another model than the input. File number N is always the same file:
`--seed N --files 1` tries it again. Each finding is kept in FOLDER and becomes a test.

Everything runs in child processes, which are watched: one that dies or does not answer is a finding, and the next one
goes on behind the file that it had. The end says in one line for each kind what became of the files.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import mmap
import os
import platform
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

LIMIT_SECONDS = 10
"""Processor time for one file; a busy machine is no finding."""
HANGS_AFTER = 600
"""Seconds without a sign of life."""
LIMIT_BYTES = 512 << 20
"""Memory above what the modules themselves take."""


def main() -> None:
    """Fuzz in child processes until so many files or seconds are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=("model", "recipe", "both"), default="both")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "onnx-tailor-findings")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options)
        return
    started, totals = time.monotonic(), collections.Counter[str]()
    share = -(-options.files // options.workers)
    ends = range(options.seed, options.seed + options.files, share)
    children = [Child(options, at, min(at + share, options.seed + options.files)) for at in ends]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the end says what was done until then
    try:
        findings = _watch(children, options, totals, started + options.seconds)
    except KeyboardInterrupt:
        findings = totals["finding: the process died"] + sum(
            n for kind, n in totals.items() if kind.endswith(": finding")
        )
    finally:
        for each in children:
            each.stop()
    done = totals.total()
    print(
        f"{done} files from seed {options.seed} on, {findings} findings, {time.monotonic() - started:.0f} s, ", end=""
    )
    print(
        f"{options.workers} processes, {os.cpu_count()} processors, "
        f"Python {platform.python_version()}, {platform.system()}"
    )
    for kind, count in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"{count:8} {kind}")
    sys.exit(1 if findings else 0)


def _watch(children: list[Child], options: argparse.Namespace, totals: collections.Counter[str], end: float) -> int:
    """Start the children and count what they say, until all have ended or the time is over; return the findings."""
    findings = 0
    with selectors.DefaultSelector() as waiting:
        for each in children:
            each.start(waiting)
        while waiting.get_map() and time.monotonic() < end:
            for key, _ in waiting.select(timeout=5):
                for event in key.data.events(waiting):
                    totals.update(event.get("counts", {"finding: the process died": 1}))
                    if "what" in event:
                        findings += 1
                        _keep(options.keep, event)
            for each in children:
                each.kill_if_it_hangs()
    return findings


class Child:
    """A process that tries the files `at` to `end`, and another in its place when it dies."""

    def __init__(self, options: argparse.Namespace, at: int, end: int) -> None:
        self.options, self.at, self.end = options, at, end
        self.process: subprocess.Popen[str] | None = None
        self.progress = tempfile.NamedTemporaryFile(prefix="fuzz-progress-")  # noqa: SIM115 # lives as long as this object
        self.seen = time.monotonic()

    def start(self, waiting: selectors.BaseSelector) -> None:
        """Start the process behind the last file that was tried."""
        self.progress.seek(0)
        self.progress.write((0).to_bytes(8, "little"))
        self.progress.flush()
        command = [sys.executable, __file__, "--child", str(self.at), "--files", str(self.end - self.at)]
        command += ["--kind", self.options.kind, "--keep", self.progress.name]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.seen = time.monotonic()
        waiting.register(self._output, selectors.EVENT_READ, self)

    @property
    def _output(self) -> IO[str]:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout

    def events(self, waiting: selectors.BaseSelector) -> list[dict[str, Any]]:
        """Return what the process says, or how it died."""
        assert self.process is not None
        line = self._output.readline()
        self.seen = time.monotonic()
        if line:
            return [json.loads(line)]
        waiting.unregister(self._output)
        _, errors = self.process.communicate()
        self.progress.seek(0)
        number = int.from_bytes(self.progress.read(8), "little") - 1
        if number < self.at:
            sys.exit(f"no file was tried: {errors[-3000:]}")
        status, self.at = self.process.returncode, number + 1
        if status == 0 and self.at >= self.end:
            return []
        if self.at < self.end:
            self.start(waiting)
        if status == 0:  # it has grown, and wants to begin anew
            return []
        what = signal.Signals(-status).name if status < 0 else f"status {status}"
        return [{"seed": number, "what": f"the process ended with {what}: {errors[-3000:]}"}]

    def kill_if_it_hangs(self) -> None:
        """End a process that has not said anything for long; its end is a finding."""
        if self.process is not None and time.monotonic() - self.seen > HANGS_AFTER:
            self.process.kill()

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def child(options: argparse.Namespace) -> None:
    """Try files, and say so in a line of JSON for some of them together and for each finding."""
    import trial

    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)  # whose default is to end the process
    shared = "/dev/shm"  # memory, where there is one: nothing waits for a disk
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=shared if os.access(shared, os.W_OK) else None) as scratch:
        tempfile.tempdir = scratch
        os.environ["TMPDIR"] = scratch
        for number in range(-64, 0):  # imports and compiled kernels count against no file
            trial.try_file(number, options.kind)
        bound = trial.peak() + LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (_virtual() + 4 * LIMIT_BYTES,) * 2)
        with options.keep.open("r+b") as file, mmap.mmap(file.fileno(), 8) as progress:
            _try_all(trial, options, progress, bound)


def _try_all(trial: Any, options: argparse.Namespace, progress: mmap.mmap, bound: int) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for number in range(options.child, options.child + options.files):
        progress[:8] = (number + 1).to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
        outcome = trial.try_file(number, options.kind)
        signal.setitimer(signal.ITIMER_PROF, 0)
        counts[outcome.kind] += 1
        grown = trial.peak() > bound
        finding = outcome.finding or (f"{trial.peak()} bytes of memory, {bound} allowed" if grown else "")
        if finding:
            _say({"seed": number, "what": finding, "content": outcome.content.hex(), "counts": dict(counts)})
        elif counts.total() >= 50:
            _say({"counts": dict(counts)})
        if finding or counts.total() >= 50:
            counts.clear()
        if grown:  # or every file after this one would be a finding
            break
    if counts:
        _say({"counts": dict(counts)})


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _virtual() -> int:
    """Return the address space that this process has, in bytes; much where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[0]) * mmap.PAGESIZE if status.exists() else 1 << 36


def _keep(folder: Path, finding: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    print(f"FINDING in file {finding['seed']}: {finding['what']}", flush=True)
    content = bytes.fromhex(finding.pop("content", ""))
    finding.pop("counts", None)
    (folder / f"{finding['seed']}.json").write_text(json.dumps(finding))
    if content:
        (folder / f"{finding['seed']}.bin").write_bytes(content)


if __name__ == "__main__":
    main()
