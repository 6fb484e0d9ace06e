"""ONNX Runtime for JavaScript, in Node and in a headless Chromium: run small models there and read what they gave."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

CLIENTS = Path(__file__).parent / "clients"
TYPES = {np.dtype(np.int64): "int64", np.dtype(np.float32): "float32", np.dtype(np.float16): "float16"}
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Runtime:
    """One build of ONNX Runtime and what it runs on."""

    name: str
    build: str
    """`node`, or a file of onnxruntime-web/dist."""
    provider: str


RUNTIMES = (
    Runtime("node", "node", "cpu"),
    Runtime("wasm", "ort.wasm.min.mjs", "wasm"),
    Runtime("asyncify on wasm", "ort.webgpu.min.mjs", "wasm"),
    Runtime("asyncify on webgpu", "ort.webgpu.min.mjs", "webgpu"),
    Runtime("jspi on webgpu", "ort.jspi.min.mjs", "webgpu"),
    Runtime("jsep on webgpu", "ort.min.mjs", "webgpu"),
)
"""transformers.js loads the build asyncify, for wasm as for webgpu."""


@dataclass
class Case:
    """One model with what it is fed."""

    name: str
    model: Path
    feeds: dict[str, Array]
    options: dict[str, Any] = field(default_factory=dict)
    """Of the session."""


@dataclass(frozen=True)
class Answers:
    """What a runtime said."""

    about: dict[str, Any]
    """Versions, and of WebGPU the adapter and whether it computes in float16 (`half`)."""
    results: dict[str, dict[str, Array] | str]
    """By case, the outputs by name, or what went wrong."""


def missing(*, browser: bool = False) -> str:
    """Return why nothing can be run here, or ""."""
    if shutil.which("node") is None:
        return "there is no program node"
    if not (CLIENTS / "node_modules").exists():
        return "tests/clients/node_modules is missing; `make clients` makes it"
    if browser and chromium() is None:
        return "there is no Chromium; install one, or name it in the variable CHROMIUM"
    return ""


def chromium() -> str | None:
    """Return the browser that is there."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next((found for name in names if (found := shutil.which(name))), None)


def script(name: str, *arguments: str) -> Any:
    """Run a script of tests/clients in Node and return the JSON that it printed last.

    Raises:
        RuntimeError: it failed.
    """
    node = shutil.which("node")
    assert node is not None
    environment = {**os.environ, "CHROMIUM": chromium() or ""}
    command = [node, str(CLIENTS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CLIENTS, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run(runtime: Runtime, folder: Path, cases: list[Case]) -> Answers:
    """Run each case, whose files lie below `folder`."""
    spec = {
        "build": runtime.build,
        "provider": runtime.provider,
        "folder": str(folder),
        "cases": [_stated(case, folder) for case in cases],
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    answer = script("run_cases.mjs", str(path))
    results = {
        name: found["error"] if "error" in found else {n: _array(value) for n, value in found["outputs"].items()}
        for name, found in answer.pop("results").items()
    }
    return Answers(answer, results)


def _stated(case: Case, folder: Path) -> dict[str, Any]:
    data = case.model.with_name(f"{case.model.name}.data")
    feeds = {
        name: {
            "type": TYPES[value.dtype],
            "dims": list(value.shape),
            "base64": base64.b64encode(np.ascontiguousarray(value).tobytes()).decode(),
        }
        for name, value in case.feeds.items()
    }
    return {
        "name": case.name,
        "model": case.model.relative_to(folder).as_posix(),
        "data": data.relative_to(folder).as_posix() if data.exists() else None,
        "feeds": feeds,
        "options": case.options,
    }


def _array(found: dict[str, Any]) -> Array:
    kind = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int64": np.int64}
    return np.frombuffer(base64.b64decode(found["base64"]), kind[found["type"]]).reshape(found["dims"])
