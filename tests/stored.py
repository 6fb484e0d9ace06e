"""Read back what a run stored, with nothing of onnx-tailor's own readers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """One quantized operator: its attributes and its operands as stored."""

    node: onnx.NodeProto
    attributes: dict[str, int]
    operands: list[Array | None]
    """Data, scales and zero points; None for an absent one."""

    def dequantized(self, columns: int) -> Array:
        """Return (code - zero point) * scale [rows, columns] in float32, unpacked bit by bit."""
        bits, block = self.attributes["bits"], self.attributes["block_size"]
        data, scales, points = self.operands
        assert data is not None
        assert scales is not None
        rows = len(data)
        blocks = -(-columns // block)
        codes = unpack(data.reshape(rows, -1), bits)[:, : blocks * block].astype(np.float32)
        if points is None:
            zero: Array = np.full((rows, blocks), 1 << bits - 1, np.float32)
        else:
            zero = unpack(points.reshape(rows, -1), bits)[:, :blocks].astype(np.float32)
        scale = scales.reshape(rows, blocks).astype(np.float32)
        values = (codes.reshape(rows, blocks, block) - zero[..., None]) * scale[..., None]
        found: Array = values.reshape(rows, -1)[:, :columns]
        return found


def unpack(packed: Array, bits: int) -> Array:
    """Return the values of `bits` bits in each row of bytes, the lowest bits first."""
    unpacked = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), -1, bits)
    found: Array = (unpacked * (1 << np.arange(bits))).sum(axis=2)
    return found


def operators(path: Path, op_type: str) -> list[Stored]:
    """Return every operator `op_type` of the main graph, with its operands loaded."""
    model = onnx.load(path)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != op_type:
            continue
        first = 1 if op_type == "MatMulNBits" else 0
        names = [node.input[i] if i < len(node.input) else "" for i in (first, first + 1, first + 2)]
        if op_type == "GatherBlockQuantized":
            names = [node.input[i] if i < len(node.input) else "" for i in (0, 2, 3)]
        attributes = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
        found.append(Stored(node, attributes, [tensors.get(name) for name in names]))
    return found


def ranges(path: Path) -> dict[str, tuple[int, int]]:
    """Return offset and length of every initializer that lies in the data file."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            found[tensor.name] = (int(entries["offset"]), int(entries["length"]))
    return found
