"""Time and memory of `inspect`, `lint` and `run` on graphs of very many nodes: twice the nodes, twice the seconds.

    python benchmarks/graph_size.py [--nodes 10000 30000 100000] [--kinds decoder chain ...] [--json]

| kind | the graph |
| --- | --- |
| `decoder` | layers of attention and a gated network, as many as it takes |
| `chain` | a token table and a head, and between them nothing but additions and activations |
| `comb` | one value that all nodes read, and sums of many of their outputs |
| `nested` | the layers of `decoder` in the branches of an If, in an If, and so on, 20 deep |
| `branches` | each layer in the branch of an If of its own, one after the other |
| `quantized` | layers of MatMulNBits, each with a quantized table of its own |
| `tables` | the same with a table in float and one of INT4 in its place |

Weights are 16 x 16, so that the time is the graph's. The growth is how many times longer the largest graph takes for
each node than the smallest.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH, ROWS, DEPTH = 16, 64, 20
LAYER = 32
"""Nodes of a layer."""
COMMANDS = {
    "inspect": ["inspect", "{model}", "--json"],
    "lint": ["lint", "{model}", "--target", "cpu", "--json"],
    "run": ["run", "rtn", "{model}", "-o", "{out}", "--overwrite", "--json"],
}
"""The recipe `rtn` ties the embedding with the head and quantizes every weight."""


def main() -> None:
    """Print a row for each graph and command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for kind in options.kinds:
        for nodes in sorted(options.nodes):
            with tempfile.TemporaryDirectory() as scratch:
                model = Path(scratch) / "in" / "model.onnx"
                count = write(model, kind, nodes)
                for name, command in COMMANDS.items():
                    filled = [each.format(model=model, out=Path(scratch) / "out") for each in command]
                    rows.append({"kind": kind, "command": name, "nodes": count, **_measure(filled)})
                    if not options.json:
                        print(_row(rows[-1], rows), flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))


def _measure(command: list[str]) -> dict[str, object]:
    """Run a command; return its processor time, which a busy machine changes little, and its memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-m", "onnx_tailor", *command], capture_output=True, check=False)
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode and not (command[0] == "lint" and ended.returncode == 1 and b'"findings"' in ended.stdout):
        sys.exit(ended.stderr.decode()[-2000:])
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "wall": round(wall, 2), "peak_mib": after.ru_maxrss >> 10}


def _row(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    first = next(each for each in rows if (each["kind"], each["command"]) == (row["kind"], row["command"]))
    growth = row["seconds"] / first["seconds"] * first["nodes"] / row["nodes"]
    return (
        f"{row['kind']:8} {row['command']:8} {row['nodes']:7} nodes {row['seconds']:8} s of processor time "
        f"{row['wall']:8} s {row['peak_mib']:6} MiB at most so far, growth {growth:.2f}"
    )


def write(path: Path, kind: str, nodes: int) -> int:
    """Write a graph of about so many nodes; return how many it has."""
    builder = Builder()
    KINDS[kind](builder, nodes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(builder.model().SerializeToString())
    return builder.count


class Builder:
    """Collects nodes and weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.count = 0
        self.quantized = False
        self.random = np.random.default_rng(0)
        table = self.weight("table", ROWS, WIDTH)
        self.first = self.node("Gather", [table, "ids"], "embed_tokens")

    def node(self, op_type: str, inputs: list[str], name: str, **attributes: object) -> str:
        """Add a node and return its output."""
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        self.count += 1
        return f"{name}_out"

    def weight(self, name: str, rows: int = WIDTH, columns: int = WIDTH) -> str:
        """Add a weight and return its name."""
        values = self.random.standard_normal((rows, columns), np.float32)
        self.weights.append(TensorProto(name=name, data_type=1, dims=values.shape, raw_data=values.tobytes()))
        return name

    def project(self, value: str, name: str) -> str:
        """Multiply by a weight of its own."""
        if self.quantized:
            inputs = [value, self.codes(f"{name}.weight", WIDTH), self.weight(f"{name}.scales", WIDTH, 1)]
            sizes = {"N": WIDTH, "K": WIDTH, "bits": 8, "block_size": 16}
            return self.node("MatMulNBits", inputs, name, domain="com.microsoft", **sizes)
        return self.node("MatMul", [value, self.weight(f"{name}.weight")], name)

    def codes(self, name: str, rows: int) -> str:
        """Add a weight of 8 bits in one block a row, in the shape of its reader."""
        dims = [rows, WIDTH] if "table" in name else [rows, 1, WIDTH]
        raw = self.random.bytes(rows * WIDTH)
        self.weights.append(TensorProto(name=name, data_type=TensorProto.UINT8, dims=dims, raw_data=raw))
        return name

    def choice(self, inner: list[onnx.NodeProto], result: str, otherwise: str, name: str) -> onnx.NodeProto:
        """Return an If that yields what `inner` yields as `result`, or else a value as it is."""
        info = [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in (result, f"same{name}")]
        branch = helper.make_graph(inner, f"branch{name}", [], info[:1])
        same = helper.make_node("Identity", [otherwise], [f"same{name}"])
        other = helper.make_graph([same], f"other{name}", [], info[1:])
        self.count += 2
        return helper.make_node("If", ["flag"], [f"chosen{name}"], f"if{name}", then_branch=branch, else_branch=other)

    def layer(self, x: str, name: str) -> str:
        """Add attention and a gated network; `LAYER` nodes."""
        normed = self.norm(x, f"{name}.norm")
        q, k, v = (self.project(normed, f"{name}.self_attn.{role}_proj") for role in "qkv")
        turned = self.node("Transpose", [k], f"{name}.turned", perm=[0, 2, 1])
        scores = self.node("MatMul", [q, turned], f"{name}.scores")
        mixed = self.node("MatMul", [self.node("Softmax", [scores], f"{name}.softmax", axis=-1), v], f"{name}.mixed")
        x = self.node("Add", [x, self.project(mixed, f"{name}.self_attn.o_proj")], f"{name}.add")
        normed = self.norm(x, f"{name}.post_norm")
        gate, up = (self.project(normed, f"{name}.mlp.{role}_proj") for role in ("gate", "up"))
        active = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
        inner = self.node("Mul", [active, up], f"{name}.gated")
        return self.node("Add", [x, self.project(inner, f"{name}.mlp.down_proj")], f"{name}.add_mlp")

    def norm(self, x: str, name: str) -> str:
        """Normalize, written out as torch.onnx writes it."""
        for index, op_type in enumerate(("Abs", "ReduceMean", "Sqrt", "Reciprocal")):
            x = self.node(op_type, [x], f"{name}.{index}")
        for index in range(4):
            x = self.node("Mul", [x, "scale"], f"{name}.scale{index}")
        return x

    def model(self) -> onnx.ModelProto:
        """Return the model, its head behind the last value."""
        scale = TensorProto(name="scale", data_type=1, dims=[1], raw_data=np.float32(1.0).tobytes())
        flag = TensorProto(name="flag", data_type=TensorProto.BOOL, dims=[], raw_data=b"\1")
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "large",
            [info("ids", TensorProto.INT64, [1, "tokens"])],
            [info("logits", TensorProto.FLOAT, [1, "tokens", ROWS])],
            [*self.weights, scale, flag],
        )
        return helper.make_model(graph, opset_imports=imports, ir_version=8)

    def head(self, value: str) -> None:
        """Add the head."""
        self.weight("lm_head.weight", WIDTH, ROWS)
        self.nodes.append(helper.make_node("MatMul", [value, "lm_head.weight"], ["logits"], name="lm_head"))
        self.count += 1


def decoder(builder: Builder, nodes: int) -> None:
    """Build layer after layer."""
    x, number = builder.first, 0
    while builder.count < nodes:
        x, number = builder.layer(x, f"model.layers.{number}"), number + 1
    builder.head(x)


def chain(builder: Builder, nodes: int) -> None:
    """Build a stream without a product."""
    x = builder.first
    for index in range(nodes // 2):
        x = builder.node("Add", [builder.node("Sigmoid", [x], f"s{index}"), x], f"a{index}")
    builder.head(x)


def comb(builder: Builder, nodes: int) -> None:
    """Let one value have very many readers."""
    teeth = [builder.node("Sigmoid" if i % 8 else "Shape", [builder.first], f"t{i}") for i in range(nodes)]
    floats = [tooth for i, tooth in enumerate(teeth) if i % 8]
    sums = [builder.node("Sum", floats[i : i + 1000], f"sum{i}") for i in range(0, len(floats), 1000)]
    products = [builder.project(builder.first, f"p{i}") for i in range(nodes // 100)]
    builder.head(builder.node("Sum", [*sums, *products], "all"))


def nested(builder: Builder, nodes: int) -> None:
    """Put layers into branches within branches."""
    layers = max(2, nodes // LAYER)
    depth = min(DEPTH, layers)
    levels: list[tuple[list[onnx.NodeProto], str]] = []
    x = builder.first
    for level in range(depth):
        for number in range(layers * level // depth, layers * (level + 1) // depth):
            x = builder.layer(x, f"model.layers.{number}")
        levels.append((builder.nodes, x))
        builder.nodes = []
    inner, result = levels.pop()
    while levels:
        outer, before = levels.pop()
        inner = [*outer, builder.choice(inner, result, before, f"{len(levels)}")]
        result = f"chosen{len(levels)}"
    builder.nodes = inner
    builder.head(result)


def branches(builder: Builder, nodes: int) -> None:
    """Put every layer into a branch of its own, one after the other."""
    x = builder.first
    for number in range(max(2, nodes // LAYER)):
        before, builder.nodes = builder.nodes, []
        y = builder.layer(x, f"model.layers.{number}")
        before.append(builder.choice(builder.nodes, y, x, str(number)))
        builder.nodes = before
        x = f"chosen{number}"
    builder.head(x)


def quantized(builder: Builder, nodes: int) -> None:
    """Build layers of MatMulNBits, each with a quantized table of its own, as Gemma 3n has them."""
    builder.quantized = True
    x, number = builder.first, 0
    while builder.count < nodes:
        name = f"model.layers.{number}"
        codes, scales = builder.codes(f"{name}.table", ROWS), builder.weight(f"{name}.table.scales", ROWS, 1)
        rows = builder.node(
            "GatherBlockQuantized",
            [codes, "ids", scales],
            f"{name}.embed",
            domain="com.microsoft",
            bits=8,
            block_size=16,
            gather_axis=0,
            quantize_axis=1,
        )
        x, number = builder.layer(builder.node("Add", [x, rows], f"{name}.add_table"), name), number + 1
    builder.quantized = False
    builder.head(x)


def tables(builder: Builder, nodes: int) -> None:
    """Build layers of MatMulNBits, each with tables that one of these could be the head of."""
    builder.quantized = True
    x, number = builder.first, 0
    while builder.count < nodes:
        name = f"model.layers.{number}"
        floats = builder.node("Gather", [builder.weight(f"{name}.table", ROWS // 2), "ids"], f"{name}.embed")
        raw = builder.random.bytes(ROWS * WIDTH // 2)
        int4 = TensorProto(name=f"{name}.int4", data_type=TensorProto.INT4, dims=[ROWS, WIDTH], raw_data=raw)
        builder.weights.append(int4)
        inputs = [int4.name, "ids", builder.weight(f"{name}.int4_scales", ROWS, 1)]
        typed = builder.node(
            "GatherBlockQuantized", inputs, f"{name}.embed_int4", domain="com.microsoft", block_size=16, quantize_axis=1
        )
        both = builder.node("Add", [floats, typed], f"{name}.add_tables")
        x, number = builder.layer(builder.node("Add", [x, both], f"{name}.add_table"), name), number + 1
    builder.quantized = False
    builder.head(x)


KINDS: dict[str, Callable[[Builder, int], None]] = {
    each.__name__: each for each in (decoder, chain, comb, nested, branches, quantized, tables)
}


if __name__ == "__main__":
    main()
