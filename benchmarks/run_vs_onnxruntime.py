"""Compare whole processes: `onnx-tailor run` with ONNX Runtime's own MatMulNBitsQuantizer on one model.

Each contender is a child of its own, from starting Python to the saved model. This process reads no model
before the last child has ended, because Linux hands a parent's peak memory down to the children it starts;
so a row's peak is at least this process's own, some 40 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

_ONNXRUNTIME = """
import sys
import onnx
from onnxruntime.quantization import matmul_nbits_quantizer as q
method, model, out = sys.argv[1:]
config = {
    "k_quant": q.KQuantWeightOnlyQuantConfig,
    "rtn": q.RTNWeightOnlyQuantConfig,
    "default": lambda: None,
}[method]()
quantizer = q.MatMulNBitsQuantizer(
    onnx.load(model), bits=4, block_size=32, is_symmetric=False, algo_config=config
)
quantizer.process()
quantizer.model.save_model_to_file(out, True)
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender's figures: the median of the wall seconds, the greatest peak memory of all runs."""

    name: str
    seconds: float
    all_seconds: tuple[float, ...]
    peak_rss: int
    """Bytes."""
    output_bytes: int
    ratio: float
    """Bytes of the input / bytes of the output."""
    weights: int
    """Weight elements that were quantized, each stored table once."""
    weights_per_second: float


def main() -> None:
    """Run the contenders and print a table, or JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--recipes", nargs="*", default=["k-quant", "rtn"])
    parser.add_argument("--methods", nargs="*", default=["k_quant", "rtn", "default"], help="of ONNX Runtime")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-benchmark-") as scratch:
        rows = _measure(options, Path(scratch))
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        _print(rows)


def _measure(options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Run every contender `repeat` times; count the weights only at the end."""
    files = _files(options.model)
    commands: dict[str, tuple[list[str], Path]] = {
        "cp": (["cp", *map(str, files), str(scratch / "cp")], scratch / "cp")
    }
    for recipe in options.recipes:
        out = scratch / f"tailor-{recipe}"
        arguments = [sys.executable, "-m", "onnx_tailor", "run", recipe, str(options.model), "-o", str(out)]
        commands[f"onnx-tailor {recipe}"] = ([*arguments, "--overwrite"], out)
    for method in options.methods:
        out = scratch / f"onnxruntime-{method}"
        target = str(out / options.model.name)
        arguments = [sys.executable, "-c", _ONNXRUNTIME, method, str(options.model), target]
        commands[f"onnxruntime {method}"] = (arguments, out)
    runs = {
        name: [_child(command, out, name) for _ in range(options.repeat)] for name, (command, out) in commands.items()
    }
    total = sum(file.stat().st_size for file in files)
    return [_row(name, runs[name], out, total, options.model.name) for name, (_, out) in commands.items()]


def _child(command: list[str], out: Path, name: str) -> tuple[float, int]:
    """Run one child to its end; return its wall seconds and its peak memory in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    if not name.startswith("onnx-tailor"):  # which makes its own folder
        out.mkdir()
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
    return seconds, usage.ru_maxrss * unit


def _row(name: str, runs: list[tuple[float, int]], out: Path, total: int, model: str) -> Row:
    """Gather a contender's figures."""
    seconds = statistics.median(each for each, _ in runs)
    weights = _quantized_weights(out / model)
    size = sum(file.stat().st_size for file in out.iterdir() if ".onnx" in file.name)
    return Row(
        name=name,
        seconds=seconds,
        all_seconds=tuple(each for each, _ in runs),
        peak_rss=max(each for _, each in runs),
        output_bytes=size,
        ratio=total / size,
        weights=weights,
        weights_per_second=weights / seconds,
    )


def _files(model: Path) -> list[Path]:
    """Return the model's file and the data files that its initializers name, in a child that may grow."""
    code = (
        "import sys, onnx\n"
        "graph = onnx.load(sys.argv[1], load_external_data=False).graph\n"
        "places = (e.value for t in graph.initializer for e in t.external_data if e.key == 'location')\n"
        "print(*set(places), sep='\\n')"
    )
    command = [sys.executable, "-c", code, str(model)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return [model, *(model.parent / line for line in found.stdout.splitlines() if line)]


def _quantized_weights(model: Path) -> int:
    """Count the elements of all quantized weights; two names of one byte range count once."""
    graph = onnx.load(model, load_external_data=False).graph
    places = {
        each.name: str(sorted((e.key, e.value) for e in each.external_data if e.key in {"location", "offset"}))
        for each in graph.initializer
        if each.external_data
    }
    sizes: dict[str, int] = {}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        attributes = {each.name: each.i for each in node.attribute}
        if node.op_type == "MatMulNBits":
            name = node.input[1]
            name = makers[name].input[0] if name in makers else name
            sizes[places.get(name, name)] = attributes["K"] * attributes["N"]
    tensors = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "GatherBlockQuantized" and node.input[0] in tensors:
            name, tensor = node.input[0], tensors[node.input[0]]
            count = 1
            for size in tensor.dims:
                count *= size
            attributes = {each.name: each.i for each in node.attribute}
            each_byte = 8 // attributes.get("bits", 4) if tensor.data_type == onnx.TensorProto.UINT8 else 1
            sizes.setdefault(places.get(name, name), count * each_byte)
    return sum(sizes.values())


def _print(rows: list[Row]) -> None:
    """Print the table."""
    print(f"{'':24}{'s':>9}{'peak MB':>10}{'out MB':>10}{'ratio':>8}{'M weights':>11}{'M weights/s':>13}")
    for row in rows:
        print(
            f"{row.name:24}{row.seconds:9.2f}{row.peak_rss / 1e6:10.0f}{row.output_bytes / 1e6:10.1f}"
            f"{row.ratio:8.2f}{row.weights / 1e6:11.1f}{row.weights_per_second / 1e6:13.1f}"
        )


if __name__ == "__main__":
    main()
