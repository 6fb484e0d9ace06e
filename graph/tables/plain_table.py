"""The layout `plain`: rows of a quantized table with standard operators alone, for builds without GatherBlockQuantized.

It reads the very initializers of MatMulNBits, so that a device holds one copy: Gather of the packed codes, int32
arithmetic that unpacks them (bit operations are missing on CUDA and in older opsets), minus the zero point, times the
scale. A difference of two codes is exact in every float type and its product with the scale is rounded once, as in
GatherBlockQuantized, so the values are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_tailor.graph.model import TailorModel, is_op
from onnx_tailor.graph.shapes import change_rank, joined_shape
from onnx_tailor.graph.tables.scales import read_type
from onnx_tailor.weights.tensors import WeightTensor

_INTEGER = ir.DataType.INT32


@dataclass(frozen=True)
class PlainRows:
    """What the nodes of one `plain` table read."""

    codes: ir.Value
    """uint8 [V, blocks, block_size*bits/8]"""
    scales: ir.Value
    """[V, blocks]"""
    zero_points: ir.Value | None
    """uint8 [V, ceil(blocks*bits/8)]"""
    kind: ir.DataType
    """The type of the rows, the scales' own or a wider one."""
    ids: ir.Value
    bits: int
    output: ir.Value
    """[..., blocks, block_size*bits/8, 8/bits], in 8 bits without the last dimension"""


@dataclass(frozen=True)
class _Writer:
    """Inserts nodes before `anchor`, all of which are named after the table's Gather."""

    model: TailorModel
    anchor: ir.Node
    name: str

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], what: str, dtype: ir.DataType, **attributes: int
    ) -> ir.Value:
        name = f"{self.name}/{what}" if what else self.name
        return self.model.insert_before(
            self.anchor, op_type, inputs, attributes=dict(attributes), name=name, dtype=dtype
        )

    def cast(self, value: ir.Value, what: str, dtype: ir.DataType) -> ir.Value:
        return self.node("Cast", [value], what, dtype, to=int(dtype))

    def axes(self, count: int) -> ir.Value:
        return self.model.int64s(list(range(-count, 0)), f"{self.name}/axes")

    def deeper(self, value: ir.Value, count: int, what: str) -> ir.Value:
        """Append `count` dimensions of one."""
        axes = list(range(-count, 0))
        name = f"{self.name}/{what}"
        return change_rank(self.model, self.anchor, "Unsqueeze", value, axes, name, f"{self.name}/axes")

    def int32s(self, values: Sequence[int], what: str) -> ir.Value:
        return self.model.constant(ir.tensor(list(values), _INTEGER), f"{self.name}/{what}")

    def digits(self, packed: ir.Value, bits: int, what: str) -> ir.Value:
        """Unpack uint8 [..., bytes] into int32 [..., bytes, 8/bits], lowest bits first; in 8 bits [..., bytes]."""
        value = self.cast(packed, f"{what}/bytes", _INTEGER)
        if bits == 8:
            return value
        base, count = self.int32s([1 << bits], f"{what}/base"), 8 // bits
        digits: list[ir.Value] = []
        # Joined by Concat: a division by [1, 16], broadcast over so short an axis, takes twenty times as long on a CPU.
        for i in range(count - 1):
            higher = self.node("Div", [value, base], f"{what}/higher{i}", _INTEGER)
            above = self.node("Mul", [higher, base], f"{what}/above{i}", _INTEGER)
            digits.append(self.node("Sub", [value, above], f"{what}/digit{i}", _INTEGER))
            value = higher
        each = [self.deeper(digit, 1, f"{what}/each{i}") for i, digit in enumerate([*digits, value])]
        return self.node("Concat", each, f"{what}/digits", _INTEGER, axis=-1)


def gather_plain(
    model: TailorModel,
    anchor: ir.Node,
    operands: tuple[ir.Value, ir.Value, ir.Value | None],
    ids: ir.Value,
    bits: int,
    kind: ir.DataType,
    name: str,
) -> ir.Value:
    """Insert the nodes that gather and dequantize the rows `ids`.

    `operands` are the codes uint8 [V, blocks, blob], the scales [V, blocks] and the packed zero points, or None for
    2^(bits-1). Returns the values [..., blocks, blob, 8/bits] (in 8 bits [..., blocks, blob]) in the type `kind`, the
    scales' own or a wider one.
    """
    codes, scales, points = operands
    write = _Writer(model, anchor, name)
    stored = scales.dtype
    assert stored is not None
    # No CPU kernel multiplies in bfloat16, and float32 holds the product of the two exactly.
    inner = ir.DataType.FLOAT if kind == ir.DataType.BFLOAT16 else kind
    inside = 1 if bits == 8 else 2
    rows = write.node("Gather", [codes, ids], "codes", ir.DataType.UINT8, axis=0)
    value = write.digits(rows, bits, "codes")
    if points is None:
        zero = write.int32s([1 << bits - 1], "zero")
    else:
        zero = _zero_points(write, points, ids, _columns(scales), bits)
        zero = write.deeper(zero, inside, "zero/deep")
    value = write.node("Sub", [value, zero], "centred", _INTEGER)
    value = write.cast(value, "float", inner)
    scale = write.node("Gather", [scales, ids], "scales", stored, axis=0)
    if inner != stored:
        scale = write.cast(scale, "scales/wide", inner)
    scale = write.deeper(scale, inside, "scales/deep")
    value = write.node("Mul", [value, scale], "", inner)
    return value if inner == kind else write.cast(value, "rounded", kind)


def _zero_points(write: _Writer, points: ir.Value, ids: ir.Value, blocks: int, bits: int) -> ir.Value:
    """Insert the nodes that gather and unpack zero points; return int32 [..., blocks]."""
    packed = write.node("Gather", [points, ids], "points", ir.DataType.UINT8, axis=0)
    value = write.digits(packed, bits, "points")
    if bits == 8:
        return value
    padded = _columns(points) * (8 // bits)
    shape = joined_shape(write.model, write.anchor, ids, (padded,), f"{write.name}/points")
    value = write.node("Reshape", [value, shape], "points/join", _INTEGER)
    if padded == blocks:
        return value
    bounds = [write.model.int64s([n], f"{write.name}/points/{what}") for what, n in (("from", 0), ("to", blocks))]
    return write.node("Slice", [value, *bounds, write.axes(1)], "points/unpad", _INTEGER)


def read_plain(node: ir.Node) -> PlainRows | None:
    """Return what `node` reads if it is the multiplication at the end of `gather_plain`'s nodes."""
    if not is_op(node, "Mul"):
        return None
    centred = _back(node.inputs[0], "Cast", "Sub")
    scales = _back(node.inputs[1], "Unsqueeze", "Cast?", "Gather")
    coded = _digits(centred.inputs[0]) if centred is not None else None
    if centred is None or scales is None or coded is None:
        return None
    codes, bits = coded
    zero = centred.inputs[1]
    points = _back(zero, "Unsqueeze")
    gathered = [codes, scales]
    if points is not None:
        found = _digits(_skipped(points.inputs[0]))
        if found is None or found[1] != bits:
            return None
        gathered.append(found[0])
    elif _constant(zero) != [1 << bits - 1]:
        return None
    ids = codes.inputs[1]
    operands = [g.inputs[0] for g in gathered if g.inputs[0] is not None]
    if ids is None or len(operands) != len(gathered) or any(g.inputs[1] is not ids for g in gathered):
        return None
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and is_op(uses[0].node, "Cast"):  # bfloat16 alone is rounded at the end
        output = uses[0].node.outputs[0]
    if not _fit(operands, bits):
        return None
    points_read = operands[2] if len(operands) > 2 else None
    kind = read_type(output if output is not node.outputs[0] else node.inputs[0]) or operands[1].dtype
    assert kind is not None  # stored scales have a type
    return PlainRows(operands[0], operands[1], points_read, kind, ids, bits, output)


def _fit(operands: Sequence[ir.Value | None], bits: int) -> bool:
    """Whether codes, scales and, where there are any, zero points are stored in the shapes of one table."""
    tensors = [WeightTensor.of_value(each) if each is not None else None for each in operands]
    codes, scales, *points = tensors
    if codes is None or scales is None or codes.dtype != ir.DataType.UINT8 or len(codes.dims) != 3 or 0 in codes.dims:
        return False
    rows, blocks, _ = codes.dims
    packed = (rows, -(-blocks * bits // 8))
    return scales.dims == (rows, blocks) and all(
        each is not None and each.dtype == ir.DataType.UINT8 and each.dims == packed for each in points
    )


def _digits(value: ir.Value | None) -> tuple[ir.Node, int] | None:
    """Return the Gather whose bytes `_Writer.digits` unpacked into `value`, and the bits of a digit."""
    whole = _back(value, "Cast", "Gather")
    if whole is not None:
        return whole, 8
    joined = _back(value, "Concat")
    bits = 8 // len(joined.inputs) if joined is not None and len(joined.inputs) in {2, 4} else 0
    if joined is None or not bits:
        return None
    *lower, last = (_back(each, "Unsqueeze") for each in joined.inputs)
    packed = higher = None
    for each in lower:
        difference = _back(each.inputs[0], "Sub") if each is not None else None
        above = _back(difference.inputs[1], "Mul", "Div") if difference is not None else None
        if difference is None or above is None or _constant(above.inputs[1]) != [1 << bits]:
            return None
        value = difference.inputs[0]
        if value is not above.inputs[0] or (higher is not None and value is not higher):
            return None
        packed, higher = value if packed is None else packed, above.outputs[0]
    gather = _back(packed, "Cast", "Gather")
    return (gather, bits) if gather is not None and last is not None and last.inputs[0] is higher else None


def _skipped(value: ir.Value | None) -> ir.Value | None:
    """Step back over the nodes that join and cut unpacked zero points."""
    for op_type in ("Slice", "Reshape"):
        node = _back(value, op_type)
        value = node.inputs[0] if node is not None else value
    return value


def _back(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Follow first inputs back through nodes of these types, those with a question mark optional."""
    node: ir.Node | None = None
    for op_type in op_types:
        producer = value.producer() if value is not None else None
        if is_op(producer, op_type.rstrip("?")) and producer is not None:
            node, value = producer, producer.inputs[0]
        elif not op_type.endswith("?"):
            return None
    return node


def _columns(value: ir.Value) -> int:
    assert value.const_value is not None
    return int(value.const_value.shape.numpy()[1])


def _constant(value: ir.Value | None) -> list[int] | None:
    tensor = value.const_value if value is not None else None
    return [int(n) for n in tensor.numpy().reshape(-1)] if tensor is not None and tensor.size <= 8 else None
