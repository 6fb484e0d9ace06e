"""Compare `onnx-tailor run` with ONNX Runtime's own quantizer, Olive's passes and `cp` on one model, and on sizes.

Each contender is a child of its own, from starting Python to the saved model; every round runs all of them, so that
what else the machine does meets them alike, and the best round counts. This process reads no model before the last
child of a model has ended, because Linux hands a parent's peak memory down to the children it starts; so a row's peak
is at least this process's own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from processes import Run, run, tailor

_PEERS = Path(__file__).with_name("peers")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender's figures: the best of all rounds, but the greatest peak memory."""

    model: str
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


def main() -> None:
    """Run the contenders and print tables, or JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="by default synthetic models")
    parser.add_argument("--sizes", type=float, nargs="*", default=[40e6], help="weights of the synthetic models")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--recipes", nargs="*", default=["k-quant", "rtn"])
    parser.add_argument("--methods", nargs="*", default=["k_quant", "rtn", "default"], help="of ONNX Runtime")
    parser.add_argument("--olive", type=Path, help="a Python that has olive-ai")
    parser.add_argument("--olive-methods", nargs="*", default=["k_quant", "rtn"])
    parser.add_argument("--no-copy", action="store_true", help="leave cp out, for models that fill the disk")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-benchmark-") as scratch:
        if options.model is not None:
            rows += _measure(options.model, options, Path(scratch))
        for size in [] if options.model is not None else options.sizes:
            model = Path(scratch) / "synthetic" / "model.onnx"
            maker = [sys.executable, str(Path(__file__).with_name("synthetic.py")), str(model)]
            subprocess.run([*maker, str(int(size))], check=True)
            rows += _measure(model, options, Path(scratch))
            shutil.rmtree(model.parent)
    if options.json:
        print(json.dumps({"load": load, "runs": [asdict(row) for row in rows]}))
    else:
        print(f"load of the machine at the start: {load:.1f}")
        _print(rows)


def _measure(model: Path, options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Run every contender in each round; of what it wrote, only the graph is kept, to count the weights at the end."""
    files = _files(model)
    total = sum(file.stat().st_size for file in files)
    runs: dict[str, list[tuple[Run, int]]] = {}
    for _ in range(options.repeat):
        for name, (command, out) in _commands(model, files, options, scratch).items():
            runs.setdefault(name, []).append(_child(command, out, name, model.name))
    kept = {name: each[1] for name, each in _commands(model, files, options, scratch).items()}
    rows = [_row(name, runs[name], kept[name], total, model) for name in runs]
    for out in kept.values():
        shutil.rmtree(out, ignore_errors=True)
    return rows


def _commands(
    model: Path, files: list[Path], options: argparse.Namespace, scratch: Path
) -> dict[str, tuple[list[str], Path]]:
    """Return the command of each contender, by its name, and the folder that it writes."""
    found: dict[str, tuple[list[str], Path]] = {}
    if not options.no_copy:
        found["cp"] = ["cp", *map(str, files), str(scratch / "cp")], scratch / "cp"
    for recipe in options.recipes:
        out = scratch / f"tailor-{recipe}"
        found[f"onnx-tailor {recipe}"] = tailor("run", recipe, model, "-o", out, "--overwrite"), out
    peers = [("onnxruntime", sys.executable, options.methods)]
    if options.olive is not None:
        peers.append(("olive", str(options.olive), options.olive_methods))
    for peer, python, methods in peers:
        for method in methods:
            out = scratch / f"{peer}-{method}"
            script = str(_PEERS / f"{peer}_quantize.py")
            found[f"{peer} {method}"] = [python, script, method, str(model), str(out / model.name)], out
    return found


def _child(command: list[str], out: Path, name: str, model: str) -> tuple[Run, int]:
    """Run one contender, which writes into a new folder. Return also the bytes of models and weights there.

    The weights are removed.
    """
    shutil.rmtree(out, ignore_errors=True)
    if not name.startswith("onnx-tailor"):  # which makes its own folder
        out.mkdir()
    done = run(command, name)
    written = [file for file in out.iterdir() if ".onnx" in file.name or file.suffix == ".data"]
    size = sum(file.stat().st_size for file in written)
    for file in written:
        if file.name != model:
            file.unlink()
    return done, size


def _row(name: str, children: list[tuple[Run, int]], out: Path, total: int, model: Path) -> Row:
    """Gather a contender's figures."""
    runs, size = [child for child, _ in children], children[0][1]
    seconds = min(each.seconds for each in runs)
    weights = _quantized_weights(out / model.name)
    return Row(
        model=f"{total / 1e9:.2f} GB",
        name=name,
        seconds=seconds,
        all_seconds=tuple(each.seconds for each in runs),
        cpu_seconds=min(each.cpu_seconds for each in runs),
        peak_rss=max(each.peak_rss for each in runs),
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
    print(
        f"{'model':10}{'':24}{'s':>8}{'x cp':>7}{'CPU s':>8}{'x cp':>7}{'peak MB':>9}{'out MB':>9}{'ratio':>7}"
        f"{'M weights':>11}{'M weights/s':>13}"
    )
    copies = {row.model: row for row in rows if row.name == "cp"}
    for row in rows:
        floor = copies.get(row.model)
        times = (row.seconds / floor.seconds, row.cpu_seconds / floor.cpu_seconds) if floor else (math.nan, math.nan)
        print(
            f"{row.model:10}{row.name:24}{row.seconds:8.2f}{times[0]:7.1f}{row.cpu_seconds:8.2f}{times[1]:7.1f}"
            f"{row.peak_rss / 1e6:9.0f}{row.output_bytes / 1e6:9.1f}{row.ratio:7.2f}{row.weights / 1e6:11.1f}"
            f"{row.weights_per_second / 1e6:13.1f}"
        )


if __name__ == "__main__":
    main()
