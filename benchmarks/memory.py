"""Memory of a tied vocabulary on a CPU: each layout against the head alone, which is the floor.

Every model is loaded in a child of its own, which reads /proc/self/status: RssAnon is the heap, RssFile pages of files,
clean and given back when memory is short. The figures are what loading and running added to those of the child with
ONNX Runtime imported. Linux only. The weights are random; nothing here depends on their values.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from onnx_tailor import pipeline, recipe

BLOCK = 32
CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model: MiB added by loading and by a run, seconds to load, milliseconds for a token."""

    form: str
    disk_mb: float
    heap_loaded: float
    file_loaded: float
    heap_run: float
    file_run: float
    load_seconds: float
    token_ms: float
    heap_ratio: float
    """Heap after loading over that of the head alone."""


def main() -> None:
    """Measure every form and print a table, or JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=128256)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--float-columns", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--load", type=Path, nargs="+", metavar="MODEL", help="load these instead, the first the floor")
    parser.add_argument("--olive", type=Path, metavar="PYTHON", help="also tie with Olive, which this Python has")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "THREADS", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), int(options.child[1]), int(options.child[2]))
        return
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-memory-") as scratch:
        rows = measure(options, Path(scratch))
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        show(rows)


def measure(options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Write, load and remove one model after the other."""
    rows: list[Row] = []
    for path in options.load or ():
        rows.append(run(str(path), path, options, rows[0] if rows else None, keep=True))
    if rows:
        return rows
    for bits in (4, 8):
        layouts = ["alias", "plain", "correction", "reshape"] + (["shared"] if bits == 8 else [])
        source = quantized(scratch / "source", bits, options.rows, options.columns, table=True)
        floor = run(f"{bits} bits, head alone", head_alone(source, scratch / "head"), options, None)
        rows.append(floor)
        for layout in layouts:
            path = relaid(source, scratch / "out", layout)
            rows.append(run(f"{bits} bits, {layout}", path, options, floor))
        if options.olive:
            path = olive(options.olive, relaid(source, scratch / "untied", "alias"), scratch / "out")
            rows.append(run(f"{bits} bits, Olive", path, options, floor))
            shutil.rmtree(scratch / "untied")
        shutil.rmtree(source.parent)
    columns = options.float_columns
    floor = run("float32, head alone", floating(scratch / "f", options.rows, columns, "head"), options, None)
    rows.append(floor)
    for form in ("tied", "transposed head", "transposed table", "copies"):
        path = floating(scratch / "f", options.rows, columns, form)
        rows += [run(f"float32, {form}", path, options, floor)]
    if options.olive:
        path = olive(options.olive, floating(scratch / "f", options.rows, columns, "copies"), scratch / "out")
        rows.append(run("float32, Olive", path, options, floor))
        shutil.rmtree(scratch / "f")
    return rows


def run(form: str, path: Path, options: argparse.Namespace, floor: Row | None, *, keep: bool = False) -> Row:
    """Measure one model in a child, and remove it unless `keep`."""
    command = [sys.executable, __file__, "--child", str(path), str(options.threads), str(options.tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    disk = sum(file.stat().st_size for file in path.parent.iterdir() if ".onnx" in file.name) / 1e6
    ratio = found["heap_loaded"] / floor.heap_loaded if floor else 1.0
    if path.parent.name != "source" and not keep:
        shutil.rmtree(path.parent)
    return Row(form=form, disk_mb=disk, heap_ratio=ratio, **found)


def child(path: Path, threads: int, tokens: int) -> None:
    """Load the model, run it on one token after the other, and print what that took."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    before = resident()
    start = time.perf_counter()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    loaded = resident()
    value, *others = session.get_inputs()
    width = value.shape[-1] if value.name == "x" else 0
    times = []
    for token in range(0 if others else tokens):  # a whole model is loaded only
        feed = np.full((1, 1, width), 0.01, np.float32) if width else np.array([[token * 97]], np.int64)
        start = time.perf_counter()
        session.run(None, {value.name: feed})
        times.append(time.perf_counter() - start)
    after = resident()
    print(
        json.dumps(
            {
                "heap_loaded": loaded[0] - before[0],
                "file_loaded": loaded[1] - before[1],
                "heap_run": after[0] - before[0],
                "file_run": after[1] - before[1],
                "load_seconds": seconds,
                "token_ms": 1e3 * statistics.median(times) if times else 0.0,
            }
        )
    )


def resident() -> tuple[float, float]:
    """Return the process's heap and file pages in MiB."""
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in {"RssAnon", "RssFile"}:
            found[name] = int(value.split()[0]) / 1024
    return found["RssAnon"], found["RssFile"]


class Data:
    """A data file with its tensors at multiples of 4096, written in chunks."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True)
        self.path = path
        self.end = 0
        self.rng = np.random.default_rng(0)

    def tensor(
        self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int | None = None
    ) -> onnx.TensorProto:
        """Store random values, or name those at `offset`, and return the entry."""
        count, kind = int(np.prod(shape)), np.dtype(dtype)
        if offset is None:
            self.end += -self.end % 4096
            offset = self.end
            with self.path.open("ab") as file:
                file.truncate(offset)
                for start in range(0, count, CHUNK):
                    self._values(kind, min(CHUNK, count - start)).tofile(file)
            self.end = offset + count * kind.itemsize
        data_type = helper.np_dtype_to_tensor_dtype(kind)
        tensor = onnx.TensorProto(name=name, data_type=data_type, dims=shape, data_location=TensorProto.EXTERNAL)
        places = {"location": self.path.name, "offset": str(offset), "length": str(count * kind.itemsize)}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=value)
        return tensor

    def _values(self, kind: np.dtype[np.generic], count: int) -> npt.NDArray[np.generic]:
        if kind == np.uint8:
            return self.rng.integers(0, 256, count, dtype=np.uint8)
        return (self.rng.random(count, dtype=np.float32) * 0.01 + 0.001).astype(kind)


def write(data: Data, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], value: onnx.ValueInfoProto) -> Path:
    """Write the ONNX file beside its data."""
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "head", [value], [logits], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = data.path.with_name("model.onnx")
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def quantized(folder: Path, bits: int, rows: int, columns: int, *, table: bool) -> Path:
    """Write a table and a head on the same codes, as the GenAI builder does, or the head alone."""
    blocks, blob = columns // BLOCK, BLOCK * bits // 8
    data = Data(folder / "model.onnx.data")
    tensors = [
        data.tensor("codes", np.uint8, (rows, blocks, blob)),
        data.tensor("scales", np.float32, (rows, blocks)),
        data.tensor("points", np.uint8, (rows, blocks * bits // 8)),
    ]
    names = ["codes", "scales", "points"]
    form = {"bits": bits, "block_size": BLOCK}
    head = helper.make_node(
        "MatMulNBits",
        ["x", *names],
        ["logits"],
        name="/lm_head",
        domain="com.microsoft",
        K=columns,
        N=rows,
        accuracy_level=4,
        **form,
    )
    if not table:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", columns])
        return write(data, [head], tensors, value)
    tensors.append(helper.make_tensor("flat", TensorProto.INT64, [2], [rows, blocks * blob]))
    nodes = [
        helper.make_node("Reshape", ["codes", "flat"], ["codes_flat"], name="/flat"),
        helper.make_node(
            "GatherBlockQuantized",
            ["codes_flat", "ids", *names[1:]],
            ["x"],
            name="/embed",
            domain="com.microsoft",
            gather_axis=0,
            quantize_axis=1,
            **form,
        ),
        head,
    ]
    return write(data, nodes, tensors, helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"]))


def head_alone(source: Path, folder: Path) -> Path:
    """Write the model of `source` without its table, on a copy of the same data file."""
    model = onnx.load(source, load_external_data=False)
    (head,) = (node for node in model.graph.node if node.op_type == "MatMulNBits")
    columns = next(a.i for a in head.attribute if a.name == "K")
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.append(head)
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", columns]))
    kept = [tensor for tensor in model.graph.initializer if tensor.name in head.input]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    folder.mkdir()
    shutil.copy(source.with_name("model.onnx.data"), folder)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def relaid(source: Path, folder: Path, layout: str) -> Path:
    """Let `reshape-dim` write the table in a layout."""
    text = folder.with_suffix(".yaml")
    text.write_text(f"recipe: 1\npasses:\n  - reshape-dim: {{layout: {layout}}}\n", encoding="utf-8")
    pipeline.run(recipe.load(str(text)), source, folder, target="cpu", overwrite=True)
    return folder / source.name


def olive(python: Path, source: Path, folder: Path) -> Path:
    """Let Olive tie the model of `source`, in an environment of its own."""
    script = Path(__file__).with_name("olive_tie.py")
    subprocess.run([str(python), str(script), str(source), str(folder)], check=True, capture_output=True)
    return folder / source.name


def floating(folder: Path, rows: int, columns: int, form: str) -> Path:
    """Write a float table and head: alone, tied as tie-embeddings does, or as exporters do."""
    data = Data(folder / "model.onnx.data")
    tensors = [data.tensor("table", np.float32, (rows, columns))]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])
    flat = helper.make_tensor("flat", TensorProto.INT64, [2], [-1, columns])
    gather = helper.make_node("Gather", ["table", "ids"], ["x"], name="/embed")
    reshape = helper.make_node("Reshape", ["x", "flat"], ["h"])
    if form == "head":
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", columns])
        nodes = [reshape, helper.make_node("Gemm", ["h", "table"], ["logits"], transB=1)]
        return write(data, nodes, [*tensors, flat], value)
    if form == "tied":
        nodes = [gather, reshape, helper.make_node("Gemm", ["h", "table"], ["logits"], transB=1)]
        return write(data, nodes, [*tensors, flat], ids)
    if form == "transposed table":  # as the GenAI builder's tied float files
        nodes = [
            helper.make_node("Transpose", ["head"], ["table"], perm=[1, 0]),
            gather,
            helper.make_node("MatMul", ["x", "head"], ["logits"]),
        ]
        tensors = [data.tensor("head", np.float32, (columns, rows), 0)]
        return write(data, nodes, tensors, ids)
    if form == "transposed head":  # as torch.onnx and optimum
        nodes = [
            gather,
            helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "head"], ["logits"]),
        ]
        return write(data, nodes, tensors, ids)
    tensors.append(data.tensor("head", np.float32, (columns, rows)))
    return write(data, [gather, helper.make_node("MatMul", ["x", "head"], ["logits"])], tensors, ids)


def show(rows: list[Row]) -> None:
    """Print the table."""
    import onnxruntime

    print(f"onnxruntime {onnxruntime.__version__}; MiB added to the process")
    names = {"disk MB": 9, "heap": 8, "files": 8, "run heap": 10, "run files": 11, "load s": 8, "ms": 8, "ratio": 7}
    print(" " * 24 + "".join(f"{name:>{width}}" for name, width in names.items()))
    for row in rows:
        print(
            f"{row.form:24}{row.disk_mb:9.0f}{row.heap_loaded:8.0f}{row.file_loaded:8.0f}{row.heap_run:10.0f}"
            f"{row.file_run:11.0f}{row.load_seconds:8.2f}{row.token_ms:8.1f}{row.heap_ratio:7.2f}"
        )


if __name__ == "__main__":
    main()
