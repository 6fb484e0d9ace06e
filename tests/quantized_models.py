"""Small models with a quantized table and a head on the same codes, written by hand, and what numpy says they hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.file.save import plan_storage, write_graph
from onnx_tailor.graph.tables.read_block_table import FoundTable, find_block_tables
from onnx_tailor.passes.reshape_dim import rewrite
from onnx_tailor.progress import Silent
from onnx_tailor.weights import journal
from onnx_tailor.weights.tasks import Destination
from onnx_tailor.weights.threads import Threads
from onnx_tailor.weights.writer import write

LAYOUTS = ("alias", "shared", "correction", "plain", "reshape")
FLOATS = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
IDS = np.array([[3, 0, 7], [5, 5, 1]], np.int64)


@dataclass(frozen=True)
class Case:
    """One quantized table [V, K] and the types around it."""

    bits: int = 4
    symmetric: bool = False
    dtype: str = "float32"
    k: int = 64
    block: int = 32
    v: int = 8
    layout: str = "reshape"
    ids_shape: tuple[str | int, ...] | None = ("batch", "sequence")
    ids_dtype: int = TensorProto.INT64
    head: bool = True
    """A MatMulNBits reads the table too."""
    own_copy: bool = False
    """The Gather has its own bytes of the codes."""
    attributes: bool = True
    """All four attributes are written."""

    @property
    def blocks(self) -> int:
        return -(-self.k // self.block)

    @property
    def scale_type(self) -> int:
        return helper.np_dtype_to_tensor_dtype(FLOATS[self.dtype])

    def __str__(self) -> str:
        return f"{self.bits}b-{'sym' if self.symmetric else 'asym'}-{self.dtype}-k{self.k}"


@dataclass(frozen=True)
class Weights:
    codes: npt.NDArray[np.uint8]
    """[V, blocks, block*bits/8]"""
    scales: npt.NDArray[np.generic]
    """[V, blocks]"""
    points: npt.NDArray[np.uint8] | None
    """[V, ceil(blocks*bits/8)]"""
    values: npt.NDArray[np.float32]
    """[V, K]: what the table means, in float32."""


def pack(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack along the last axis, lowest bits first, padded with zeros to whole bytes."""
    each = 8 // bits
    padded = np.concatenate([values, np.zeros((*values.shape[:-1], -values.shape[-1] % each), np.uint8)], axis=-1)
    parts = padded.reshape(*padded.shape[:-1], -1, each).astype(np.uint16)
    return (parts << (np.arange(each) * bits)).sum(axis=-1).astype(np.uint8)


def weights(case: Case, seed: int = 0) -> Weights:
    """Draw codes, scales and zero points over their whole range."""
    rng = np.random.default_rng([seed, case.bits, case.k, case.block])
    codes = rng.integers(0, 1 << case.bits, (case.v, case.blocks, case.block)).astype(np.uint8)
    scales = (rng.uniform(0.001, 0.02, (case.v, case.blocks)) * rng.choice([-1, 1], (case.v, 1))).astype(
        FLOATS[case.dtype]
    )
    points = np.full((case.v, case.blocks), 1 << case.bits - 1, np.uint8)
    if not case.symmetric:
        points = rng.integers(0, 1 << case.bits, points.shape).astype(np.uint8)
    values = (codes.astype(np.float32) - points[..., None].astype(np.float32)) * scales[..., None].astype(np.float32)
    return Weights(
        pack(codes, case.bits),
        scales,
        None if case.symmetric else pack(points, case.bits),
        values.reshape(case.v, -1)[:, : case.k],
    )


class DataFile:
    """An external data file under construction."""

    def __init__(self, path: Path, *, alignment: int = 4096) -> None:
        self.path = path
        self.content = bytearray()
        self.alignment = alignment
        self.places: dict[bytes, int] = {}

    def tensor(self, name: str, array: npt.NDArray[np.generic], *, share: bool = True) -> onnx.TensorProto:
        """Store the array, equal bytes once if `share`, and return its entry."""
        raw = np.ascontiguousarray(array).tobytes()
        offset = self.places.get(raw) if share else None
        if offset is None:
            self.content += bytes(-len(self.content) % self.alignment)
            offset = self.places[raw] = len(self.content)
            self.content += raw
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = onnx.TensorProto(name=name, data_type=dtype, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.path.name), ("offset", str(offset)), ("length", str(len(raw)))):
            tensor.external_data.add(key=key, value=value)
        return tensor


def save(graph: onnx.GraphProto, data: DataFile, path: Path) -> Path:
    """Write the model and its data file."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    data.path.write_bytes(data.content)
    return path


def build(folder: Path, case: Case, weight: Weights | None = None) -> Path:
    """Write a model with the outputs `rows` [ids..., K] and, with a head, `product` [n, V] = x [n, K] @ table.T."""
    w = weight or weights(case)
    path = folder / "model.onnx"
    data = DataFile(folder / "model.onnx.data")
    flat = (case.v, w.codes.size // case.v)
    initializers = [data.tensor("table_q", w.codes), data.tensor("table_scales", w.scales)]
    nodes = []
    operands = ["table_q", "table_scales"]
    if w.points is not None:
        initializers.append(data.tensor("table_points", w.points))
        operands.append("table_points")
    if case.layout == "reshape":
        initializers.append(helper.make_tensor("flat", TensorProto.INT64, [2], flat))
        nodes.append(helper.make_node("Reshape", ["table_q", "flat"], ["table_flat"], name="/flat"))
    else:
        initializers.append(data.tensor("table_flat", w.codes.reshape(flat), share=not case.own_copy))
    attributes = {"bits": case.bits, "block_size": case.block, "gather_axis": 0, "quantize_axis": 1}
    if not case.attributes:
        attributes = {"bits": case.bits, "block_size": case.block}
    gathered = "rows" if case.blocks * case.block == case.k else "padded"
    gather = helper.make_node(
        "GatherBlockQuantized",
        ["table_flat", "ids", *operands[1:]],
        [gathered],
        name="/embed",
        domain="com.microsoft",
        **attributes,
    )
    nodes.append(gather)
    if gathered == "padded":
        for name, value in (("from", 0), ("to", case.k), ("axis", -1)):
            initializers.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
        nodes.append(helper.make_node("Slice", ["padded", "from", "to", "axis"], ["rows"], name="/cut"))
    inputs = [helper.make_tensor_value_info("ids", case.ids_dtype, case.ids_shape)]
    rows_shape = None if case.ids_shape is None else [*case.ids_shape, case.k]
    outputs = [helper.make_tensor_value_info("rows", case.scale_type, rows_shape)]
    if case.head:
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                ["x", *operands],
                ["product"],
                name="/lm_head",
                domain="com.microsoft",
                K=case.k,
                N=case.v,
                bits=case.bits,
                block_size=case.block,
                accuracy_level=0,
            )
        )
        inputs.append(helper.make_tensor_value_info("x", case.scale_type, ["n", case.k]))
        outputs.append(helper.make_tensor_value_info("product", case.scale_type, ["n", case.v]))
    return save(helper.make_graph(nodes, "quantized", inputs, outputs, initializers), data, path)


def run(path: Path, feeds: dict[str, npt.NDArray[np.generic]], providers: tuple[str, ...] = ()) -> list[np.ndarray]:
    """Run the model in ONNX Runtime, bfloat16 in and out as its bits."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=providers or ("CPUExecutionProvider",))
    return session.run(None, feeds)


def feeds(case: Case, ids: npt.NDArray[np.generic] = IDS) -> dict[str, npt.NDArray[np.generic]]:
    """Return token ids and, for the head, the identity: its product is the table as MatMulNBits reads it."""
    values = {"ids": ids.astype(helper.tensor_dtype_to_np_dtype(case.ids_dtype))}
    return values | ({"x": np.eye(case.k, dtype=FLOATS[case.dtype])} if case.head else {})


def possible(case: Case, layout: str) -> bool:
    """Whether the layout can be written at all: packed zero points have no 3-D form, none need no correction."""
    if layout == "shared":
        return case.symmetric or case.bits == 8
    return layout != "correction" or not case.symmetric


def convert(path: Path, folder: Path, *layouts: str) -> Path:
    """Rewrite the model's table in each of the layouts in turn."""
    for number, layout in enumerate(layouts):
        model = load(path)
        (table,) = find_block_tables(model)
        assert isinstance(table, FoundTable), table
        rewrite(model, table, layout)
        model.sweep()
        out = folder / f"{number}-{layout}"
        out.mkdir()
        storage = plan_storage([model])
        notes = journal.begin(out / "journal", {})
        write(storage.plan, Destination(out, out / "token"), Silent(), notes, Threads())
        notes.close()
        write_graph(model, storage, *storage.stores, out)
        path = out / path.name
    return path
