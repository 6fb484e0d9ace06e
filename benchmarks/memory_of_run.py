"""Show that the peak memory of `onnx-tailor run` does not grow with the model.

The models are sparse files: weights of zeros but for a few bytes each, which make them differ, so that a model of many
GB needs no disk of that size. The output is a real one. Each run is a child of its own; its peak is what the kernel
tells at its end, so no earlier child or this process counts in, but for the some 40 MB this process has itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

WIDTH = 4096
LAYER_BYTES = WIDTH * WIDTH * 4
BOUND = 512 << 20
"""Bytes that `run` may need, besides three times what is read at once, and the results that are held."""


def main() -> None:
    """Run every recipe on every size, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[1, 8])
    parser.add_argument("--recipes", nargs="*", default=["k-quant", "rtn"])
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for gigabytes in options.gigabytes:
        with tempfile.TemporaryDirectory(prefix="onnx-tailor-memory-", dir=options.folder) as scratch:
            model = make_model(Path(scratch) / "in", int(gigabytes * 1e9))
            for recipe in options.recipes:
                rows.append({"gigabytes": gigabytes, "recipe": recipe, **_measure(model, recipe, Path(scratch))})
                if not options.json:
                    row = rows[-1]
                    print(
                        f"{gigabytes:6g} GB {recipe:10} peak {row['peak_mib']:5.0f} MiB  forecast "
                        f"{row['forecast_mib']:5.0f} MiB  {row['seconds']:7.1f} s  output {row['output_bytes']:,} bytes"
                    )
    if options.json:
        print(json.dumps(rows))
    if any(row["peak_mib"] * (1 << 20) > BOUND + row["allowance"] for row in rows):
        sys.exit("the peak is above 512 MiB plus what a block of work takes")


def make_model(folder: Path, size: int) -> Path:
    """Write a language model with `size` bytes of float32 weights: a tied table of a quarter, and layers."""
    folder.mkdir(parents=True)
    rows = max(1024, size // 4 // (WIDTH * 4))
    layers = max(1, (size - rows * WIDTH * 4) // LAYER_BYTES)
    shapes = {"embed_tokens.weight": (rows, WIDTH)}
    nodes = [helper.make_node("Gather", ["embed_tokens.weight", "input_ids"], ["h0"], name="/embed/Gather")]
    for i in range(layers):
        name = f"model.layers.{i}.mlp.down_proj.weight"
        shapes[name] = (WIDTH, WIDTH)
        nodes.append(helper.make_node("MatMul", [f"h{i}", name], [f"h{i + 1}"], name=f"/layers.{i}/down_proj/MatMul"))
    nodes.append(helper.make_node("Transpose", ["embed_tokens.weight"], ["head"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", [f"h{layers}", "head"], ["logits"], name="/lm_head/MatMul"))
    tensors, offset = [], 0
    with (folder / "model.onnx.data").open("wb") as data:
        for number, (name, shape) in enumerate(shapes.items()):
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            length = shape[0] * shape[1] * 4
            for key, value in (("location", "model.onnx.data"), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            data.seek(offset)
            data.write(np.random.default_rng(number).standard_normal(1024, np.float32).tobytes())
            offset += length
        data.truncate(offset)
    graph = helper.make_graph(
        nodes,
        "sparse",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", rows])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def _measure(model: Path, recipe: str, scratch: Path) -> dict[str, float]:
    """Run a recipe, and tell its peak, the forecast and its time."""
    command = [sys.executable, "-m", "onnx_tailor", "run", recipe, str(model)]
    dry = subprocess.run([*command, "--dry-run", "--json"], check=True, capture_output=True, text=True)
    forecast = json.loads(dry.stdout)["forecast"]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "-o", str(scratch / "out"), "--json"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{recipe} ended with {process.returncode}")
    size = sum(file.stat().st_size for file in (scratch / "out").iterdir())
    shutil.rmtree(scratch / "out")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_mib": usage.ru_maxrss * unit / (1 << 20),
        "forecast_mib": forecast["memory_bytes"] / (1 << 20),
        # Of a weight by columns, 2 MiB are read at a time, and at most 8 MiB of results are held.
        "allowance": 3 * (2 << 20) + (8 << 20),
        "seconds": seconds,
        "output_bytes": size,
        "own_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20),
    }


if __name__ == "__main__":
    main()
