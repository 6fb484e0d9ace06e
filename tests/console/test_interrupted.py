"""Ctrl-C while the command works: it says so, leaves nothing, and ends with the status shells expect."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model.onnx"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interrupted_run_with_verify_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onnx_tailor", "run", "tie", str(MODEL), "-o", str(tmp_path / "out")]
    command += ["--verify", "--text", "bundled"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stderr is not None
    said = ""
    deadline = time.monotonic() + 60
    while "checking" not in said and time.monotonic() < deadline:
        said += child.stderr.readline()
    time.sleep(0.5)  # the comparison, which says nothing before it ends, takes some seconds
    child.send_signal(signal.SIGINT)
    out, rest = child.communicate(timeout=60)
    assert child.returncode == 130, said + rest
    assert "error: interrupted" in rest
    assert "Traceback" not in rest
    assert (out, list(tmp_path.glob("out"))) == ("", [])
