"""Draw what each pass does to a graph, from real exports: `make pictures`, with Graphviz's `dot` at hand.

The passes run on exports of tests/fixtures; what is drawn is what is in the files before and after: the readers of some
weights, what they feed on the way to the next computation, and every other input as a dotted end.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from exports import exported

from onnx_tailor import pipeline, recipe

ROOT = Path(__file__).resolve().parents[2]
EXPORTS = ROOT / "tests" / "fixtures" / "exports"
CARRY = {"Transpose", "Reshape", "Cast", "Split", "Slice"}
"""Operators that pass a value on: they are drawn, and what reads a weight through them is."""
HIDDEN = {"Constant", "Shape", "Concat"}
TYPES = {1: "float32", 2: "uint8", 7: "int64", 10: "float16"}


@dataclass(frozen=True)
class Picture:
    """One pass on one export."""

    name: str
    source: str
    first: str
    """Passes that run before the picture is taken, as the text of a recipe; "" for none."""
    then: str
    """The pass itself."""
    weights: tuple[str, ...]
    """What is drawn: readers of weights with these parts of names, and nodes whose names begin so."""
    follow: frozenset[str] = frozenset({"Reshape"})
    """Operators that are drawn where a drawn node feeds them."""


TABLE = ("embed_tokens", "lm_head")
PARTS = frozenset({"Slice", "Split"})
QUANTIZE = "quantize: {method: rtn, bits: 4, block_size: 32, symmetric: true}"
PICTURES = (
    Picture("tie-embeddings", "dynamo-llama-fp32", "", "tie-embeddings", TABLE),
    Picture("quantize", "dynamo-llama-fp32", "tie-embeddings", QUANTIZE, TABLE),
    Picture("reshape-dim", "genai-llama-int4-k_quant", "", "reshape-dim", TABLE),
    Picture(
        "unpack-matmul",
        "dynamo-phi4mini-tiny-fp16",
        "",
        "unpack-matmul",
        ("node_linear/",),
        frozenset({"Slice", "Split"}),
    ),
    Picture(
        "pack-matmul",
        "dynamo-phi4mini-tiny-fp16",
        "unpack-matmul",
        "pack-matmul",
        ("node_linear_2/",),
        frozenset({"Slice", "Split"}),
    ),
)


def main() -> None:
    """Write docs/images/passes/NAME.svg for each picture."""
    for picture in PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            before = EXPORTS / picture.source
            if not before.is_dir():
                before = exported(picture.source, _made(scratch / "export")).parent
            if picture.first:
                before = _run(picture.first, before, scratch / "before")
            after = _run(picture.then, before, scratch / "after")
            clusters = [_cluster(title, path, picture) for title, path in (("before", before), ("after", after))]
        text = _HEAD + "\n".join(clusters) + "\n}\n"
        drawn = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True, check=True).stdout  # noqa: S607
        target = ROOT / "docs" / "images" / "passes" / f"{picture.name}.svg"
        target.write_text(drawn[drawn.index("<svg") :], encoding="utf-8")
        print(target.relative_to(ROOT))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _run(passes: str, model: Path, out: Path) -> Path:
    pipeline.run(recipe.parse(f"recipe: 1\npasses:\n  - {passes}\n", "picture"), model, out)
    return out


_HEAD = """digraph {
graph [bgcolor="#ffffff", fontname="Helvetica", fontsize=14, labeljust=l, nodesep=0.3, ranksep=0.35, compound=true]
node [fontname="Helvetica", fontsize=11, height=0.3, margin="0.12,0.05"]
edge [fontname="Helvetica", fontsize=9, color="#555555", arrowsize=0.6]
"""
_NODE = 'shape=box, style="rounded,filled", fillcolor="#d7ecec"'
_SAME = 'dir=none, style=bold, color="#b5651d", constraint=false'


def _cluster(title: str, folder: Path, picture: Picture) -> str:
    """Return the part of a graph as a DOT cluster; every id begins with the title, so that two graphs stay apart."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return _Drawing(title, graph, picture).text()


class _Drawing:
    def __init__(self, title: str, graph: onnx.GraphProto, picture: Picture) -> None:
        self.title = title
        self.follow = picture.follow
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.places = {each.name for each in graph.input}
        self.outputs = {each.name for each in graph.output}
        self.makers = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.nodes = self._chosen(graph, picture.weights)
        self.lines: list[str] = []

    def _chosen(self, graph: onnx.GraphProto, weights: tuple[str, ...]) -> list[onnx.NodeProto]:
        """Return the readers of the weights and what carries their values on, in the graph's order."""
        names = {name for name, t in self.tensors.items() if len(t.dims) > 1}
        found: list[onnx.NodeProto] = []
        queue = [
            node
            for node in graph.node
            for read in names & set(node.input)
            if any(part in read or f"{node.name}/".startswith(part) for part in weights)
        ]
        while queue:
            node = queue.pop()
            if node in found:
                continue
            found.append(node)
            following = [reader for output in node.output for reader in self.readers.get(output, [])]
            turned = node.op_type in CARRY and node.input[0] in self.tensors
            queue += [reader for reader in following if turned or reader.op_type in self.follow]
        return [node for node in graph.node if node in found]

    def text(self) -> str:
        self.lines = [f'subgraph "cluster_{self.title}" {{', f'label="{self.title}"; style=rounded; color="#bbbbbb"']
        for node in self.nodes:
            own = self._id(node.output[0])
            self.lines.append(
                f'"{own}" [label="{node.op_type}", shape=box, style="rounded,filled", fillcolor="#d7ecec"]'
            )
            for name in node.input:
                if name:
                    self._edge(name, own)
            for output in node.output:
                self._out(output, own)
        self._same_bytes()
        return "\n".join([*dict.fromkeys(self.lines), "}"])

    def _same_bytes(self) -> None:
        """Draw which weights are one range of the data file."""
        first: dict[str, str] = {}
        for name, tensor in self.tensors.items():
            place = str(sorted((e.key, e.value) for e in tensor.external_data if e.key in {"location", "offset"}))
            if not tensor.external_data or f'"{self._id(name)}" [' not in "\n".join(self.lines):
                continue
            if place in first:
                ends = f'"{self._id(first[place])}" -> "{self._id(name)}"'
                self.lines.append(
                    f'{ends} [label="the same bytes", dir=none, style=bold, color="#b5651d", constraint=false]'
                )
            first.setdefault(place, name)

    def _edge(self, name: str, own: str) -> None:
        """Draw where an input comes from: a weight, a drawn node, or an end."""
        maker = self.makers.get(name)
        if name in self.tensors:
            tensor = self.tensors[name]
            if len(tensor.dims) < 2:
                return
            dims = " x ".join(map(str, tensor.dims))
            label = f"{_short(name)}\\n{dims} {TYPES.get(tensor.data_type, '')}"
            self.lines.append(f'"{self._id(name)}" [label="{label}", shape=box, style=filled, fillcolor="#f6e3c5"]')
            self.lines.append(f'"{self._id(name)}" -> "{own}"')
        elif maker is not None and maker in self.nodes:
            self.lines.append(f'"{self._id(maker.output[0])}" -> "{own}"')
        elif maker is None or maker.op_type not in HIDDEN:
            label = name if maker is None else "..."
            self.lines.append(f'"{self._id(name)}" [label="{label}", shape=plaintext]')
            self.lines.append(f'"{self._id(name)}" -> "{own}" [style=dashed]')

    def _out(self, output: str, own: str) -> None:
        """Draw that a value goes on to what is not drawn."""
        inside = [reader for reader in self.readers.get(output, []) if reader in self.nodes]
        if output in self.outputs or (output in self.readers and not inside):
            label = output if output in self.outputs else "..."
            self.lines.append(f'"{self._id(output)}/end" [label="{label}", shape=plaintext]')
            self.lines.append(f'"{own}" -> "{self._id(output)}/end" [style=dashed]')

    def _id(self, name: str) -> str:
        return f"{self.title}/{name}"


def _short(name: str) -> str:
    """Return a name with the innermost of its modules only."""
    return ".".join(name.split(".")[-2:])


if __name__ == "__main__":
    main()
