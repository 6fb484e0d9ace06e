"""WebAssembly memory and GPU buffers of a quantized table and head in each layout, in a fresh headless Chromium each.

python tests/clients/memory_of_layouts.py [--rows 65536] [--columns 1024] [--bits 4]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import javascript
import memory

LAYOUTS = ("alias", "shared", "correction", "plain", "reshape")
BUILDS = (("ort.wasm.min.mjs", "wasm"), ("ort.webgpu.min.mjs", "wasm"), ("ort.webgpu.min.mjs", "webgpu"))


def main() -> None:
    """Print MiB after loading and after one run of one token."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    options = parser.parse_args()
    if why := javascript.missing(browser=True):
        sys.exit(why)
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-memory-") as scratch:
        folder = Path(scratch)
        source = memory.quantized(folder / "source", options.bits, options.rows, options.columns, table=True)
        tokens = {"name": "ids", "type": "int64", "dims": [1, 1]}
        models = {"head alone": (memory.head_alone(source, folder / "head"), tokens | {"name": "x", "type": "float32"})}
        models["head alone"][1]["dims"] = [1, 1, options.columns]
        for layout in LAYOUTS:
            if layout != "shared" or options.bits == 8:  # packed zero points have no 3-D form
                models[layout] = (memory.relaid(source, folder / layout, layout), tokens)
        for build, provider in BUILDS:
            print(f"{build}, {provider}: MiB after loading and after a run, wasm and GPU buffers; GPU peak")
            for name, (model, feed) in models.items():
                found = ask(build, provider, model, feed)
                if "error" in found:
                    print(f"  {name:12}{found['error'][:100]}")
                    continue
                loaded, run = found["loaded"], found["run"]
                print(f"  {name:12}{loaded['wasm']:6}{loaded['gpu']:6}{run['wasm']:8}{run['gpu']:6}{found['peak']:8}")


def ask(build: str, provider: str, model: Path, feed: dict[str, object]) -> dict[str, dict[str, int]]:
    """Measure one model in a browser of its own."""
    spec = {"build": build, "provider": provider, "folder": str(model.parent), "model": model.name, "feed": feed}
    path = model.with_name("spec.json")
    path.write_text(json.dumps(spec | {"data": f"{model.name}.data"}), encoding="utf-8")
    return javascript.script("run_memory.mjs", str(path))


if __name__ == "__main__":
    main()
