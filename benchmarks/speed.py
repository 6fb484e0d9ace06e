"""Compare `onnx-tailor run` with ONNX Runtime's own MatMulNBitsQuantizer on one model: whole processes and kernels.

Each contender is a child of its own, from starting Python to the saved model; every round runs all of them, so that
what else the machine does meets them alike. This process reads no model before the last child has ended, because Linux
hands a parent's peak memory down to the children it starts; so a row's peak is at least this process's own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from processes import Run, run, tailor

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

_KERNELS = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor, quant_tensor_k_quant_cpu
from onnx_tailor.quant import BlockFormat, quantize
from onnx_tailor.weights.pool import workers
rounds = int(sys.argv[1])
fmt = BlockFormat(4, 32, symmetric=False, scale_dtype="float32")
tile = (np.random.default_rng(0).standard_normal((512, 2048)) * 0.02).astype(np.float32)
flat = tile.reshape(-1, fmt.block_size)
ours, theirs = 8, 1
def tiles(method):
    list(pool.map(lambda _: quantize(tile, fmt, method), range(ours * workers())))
work = {
    "onnx-tailor rtn": (lambda: tiles("rtn"), ours * workers()),
    "onnxruntime rtn": (lambda: quant_tensor(flat, 4, 32, "asym", "uint"), theirs),
    "onnx-tailor k_quant": (lambda: tiles("k_quant"), ours * workers()),
    "onnxruntime k_quant": (lambda: quant_tensor_k_quant_cpu(flat, 4, 32), theirs),
}
found = {name: [] for name in work}
with ThreadPoolExecutor(workers()) as pool:
    for call, _ in work.values():
        call()
    for _ in range(rounds):
        for name, (call, count) in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            found[name].append((count * tile.size / (time.perf_counter() - wall),
                                count * tile.size / (time.process_time() - cpu)))
print(json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender's figures: the median of all rounds, but the greatest peak memory."""

    name: str
    seconds: float
    """Wall time of the whole process."""
    all_seconds: tuple[float, ...]
    cpu_seconds: float
    """Processor time, which other work on the machine stretches less."""
    peak_rss: int
    """Bytes."""
    output_bytes: int
    ratio: float
    """Bytes of the input / bytes of the output."""
    weights: int
    """Weight elements that were quantized, each stored table once."""
    weights_per_second: float


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Weights a second that a kernel alone quantizes in memory, 4 bits in blocks of 32: the median of all rounds."""

    name: str
    weights_per_second: float
    """By the clock, on all processors where the kernel uses them; ONNX Runtime's use one."""
    weights_per_cpu_second: float


def main() -> None:
    """Run the contenders and print a table, or JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="by default a synthetic model")
    parser.add_argument("--weights", type=float, default=40e6, help="of the synthetic model")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--recipes", nargs="*", default=["k-quant", "rtn"])
    parser.add_argument("--methods", nargs="*", default=["k_quant", "rtn", "default"], help="of ONNX Runtime")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-benchmark-") as scratch:
        model = options.model
        if model is None:
            model = Path(scratch) / "synthetic" / "model.onnx"
            maker = [sys.executable, str(Path(__file__).with_name("synthetic.py")), str(model)]
            subprocess.run([*maker, str(int(options.weights))], check=True)
        kernels = _kernels(options.repeat)
        rows = _measure(model, options, Path(scratch))
    if options.json:
        print(json.dumps({"runs": [asdict(row) for row in rows], "kernels": [asdict(each) for each in kernels]}))
    else:
        _print(rows, kernels)


def _kernels(rounds: int) -> list[Kernel]:
    """Measure the kernels in a child, all of them in every round."""
    done = subprocess.run([sys.executable, "-c", _KERNELS, str(rounds)], check=True, stdout=subprocess.PIPE)
    return [
        Kernel(
            name=name,
            weights_per_second=statistics.median(wall for wall, _ in found),
            weights_per_cpu_second=statistics.median(cpu for _, cpu in found),
        )
        for name, found in json.loads(done.stdout).items()
    ]


def _measure(model: Path, options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Run every contender in each round; count the weights only at the end."""
    files = _files(model)
    commands: dict[str, tuple[list[str], Path]] = {
        "cp": (["cp", *map(str, files), str(scratch / "cp")], scratch / "cp")
    }
    for recipe in options.recipes:
        out = scratch / f"tailor-{recipe}"
        commands[f"onnx-tailor {recipe}"] = (tailor("run", recipe, model, "-o", out, "--overwrite"), out)
    for method in options.methods:
        out = scratch / f"onnxruntime-{method}"
        arguments = [sys.executable, "-c", _ONNXRUNTIME, method, str(model), str(out / model.name)]
        commands[f"onnxruntime {method}"] = (arguments, out)
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(options.repeat):
        for name, (command, out) in commands.items():
            runs[name].append(_child(command, out, name))
    total = sum(file.stat().st_size for file in files)
    return [_row(name, runs[name], out, total, model.name) for name, (_, out) in commands.items()]


def _child(command: list[str], out: Path, name: str) -> Run:
    """Run one contender, which writes into a new folder."""
    shutil.rmtree(out, ignore_errors=True)
    if not name.startswith("onnx-tailor"):  # which makes its own folder
        out.mkdir()
    return run(command, name)


def _row(name: str, runs: list[Run], out: Path, total: int, model: str) -> Row:
    """Gather a contender's figures."""
    seconds = statistics.median(run.seconds for run in runs)
    weights = _quantized_weights(out / model)
    size = sum(file.stat().st_size for file in out.iterdir() if ".onnx" in file.name)
    return Row(
        name=name,
        seconds=seconds,
        all_seconds=tuple(run.seconds for run in runs),
        cpu_seconds=statistics.median(run.cpu_seconds for run in runs),
        peak_rss=max(run.peak_rss for run in runs),
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


def _print(rows: list[Row], kernels: list[Kernel]) -> None:
    """Print the tables."""
    print(f"{'':24}{'s':>8}{'CPU s':>8}{'peak MB':>9}{'out MB':>9}{'ratio':>7}{'M weights':>11}{'M weights/s':>13}")
    for row in rows:
        print(
            f"{row.name:24}{row.seconds:8.2f}{row.cpu_seconds:8.2f}{row.peak_rss / 1e6:9.0f}"
            f"{row.output_bytes / 1e6:9.1f}{row.ratio:7.2f}{row.weights / 1e6:11.1f}"
            f"{row.weights_per_second / 1e6:13.1f}"
        )
    print(f"{'kernel alone':24}{'M weights/s':>16}{'M weights/CPU s':>17}")
    for each in kernels:
        print(f"{each.name:24}{each.weights_per_second / 1e6:16.1f}{each.weights_per_cpu_second / 1e6:17.1f}")


if __name__ == "__main__":
    main()
