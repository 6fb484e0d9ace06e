"""What is wrong with a GatherBlockQuantized that somebody else wrote, and what it must have meant."""

from __future__ import annotations

import onnx_ir as ir

from onnx_tailor.graph.constants import Matrix, constant_matrix
from onnx_tailor.graph.model import attribute
from onnx_tailor.graph.tables.block_table import BlockTable
from onnx_tailor.graph.tables.nbits_weight import Heads, nbits_table
from onnx_tailor.graph.tables.same_table import same_float_table
from onnx_tailor.graph.tables.scales import stored_scales

Mended = tuple[BlockTable, str, str]
"""The table, what is wrong, and how its meaning is known."""


def attribute_faults(node: ir.Node, table: BlockTable, *, last_axis: int) -> list[str]:
    """Name the attributes that are missing or that contradict the table."""
    right = {"bits": table.bits, "block_size": table.block_size, "gather_axis": 0, "quantize_axis": last_axis}
    faults = []
    for name, value in right.items():
        if name not in node.attributes:
            faults.append(f"the attribute {name} is missing; its default differs between kernels and versions")
        elif attribute(node, name, value) not in {value, value - (last_axis + 1) if "axis" in name else value}:
            faults.append(f"the attribute {name} is {attribute(node, name, value)}, but its codes have {value}")
    return faults


def shape_faults(node: ir.Node, table: BlockTable, reshape: ir.Node | None, *, deep: bool) -> list[str]:
    """Name the shapes that the kernels refuse, or take for other numbers of bits."""
    row = table.blocks * table.block_size * table.bits // 8
    faults = []
    dims = None if deep else _flat_dims(node, reshape)
    if dims is not None and dims not in ([table.rows, row], [table.rows, -1], [0, -1], [-1, row]):
        form = f"{table.bits} bits in blocks of {table.block_size}"
        faults.append(f"its flat data are {dims}, but {form} make {[table.rows, row]}")
    wanted = [table.rows, table.blocks, 1] if deep else [table.rows, table.blocks]
    scales = stored_scales(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or scales.const_value is None:
        faults.append("its scales are missing")
    elif list(scales.const_value.shape.numpy()) != wanted:
        faults.append(f"its scales are {list(scales.const_value.shape.numpy())}, not {wanted}")
    points = node.inputs[3] if len(node.inputs) > 3 else None
    if not deep:
        wanted[1] = -(-table.blocks * table.bits // 8)
    if points is not None and points.const_value is not None and list(points.const_value.shape.numpy()) != wanted:
        faults.append(f"its zero points are {list(points.const_value.shape.numpy())}, not {wanted}")
    return faults


def _flat_dims(node: ir.Node, reshape: ir.Node | None) -> list[int] | None:
    """Return the dimensions of the data as the node reads them; None where they are computed."""
    value = node.inputs[0] if reshape is None else reshape.inputs[1]
    tensor = value.const_value if value is not None else None
    maker = value.producer() if value is not None else None
    if tensor is None and maker is not None and "value" in maker.attributes:
        tensor = maker.attributes["value"].value
    if tensor is None:
        return None
    return [int(n) for n in (tensor.shape.numpy() if reshape is None else tensor.numpy())]


def float_table(heads: Heads, data: ir.Value) -> Mended | str:
    """Read a node on a float weight, as the GenAI builder writes it for a tied asymmetric head (0.18)."""
    matrix = constant_matrix(data)
    if isinstance(matrix, str):
        return f"its data {data.name} are no quantized codes: {matrix}"
    missed = None
    for each in (matrix, matrix.transpose()):
        found = same_float_table(heads, each.view)
        if found is not None and found.rounding.same:
            fault = f"its data {data.name} are a float weight, {_form(matrix)}, and no codes; no kernel takes that"
            return found.table, fault, f"the head {found.head} is that weight quantized: {found.proof}"
        missed = found or missed
    what = f"its data {data.name} are a float weight, {_form(matrix)}, and no codes"
    if missed is None:
        shapes = (tuple(matrix.shape), tuple(matrix.shape[::-1]))
        for head, reason in heads.others:
            if (attribute(head, "N", 0), attribute(head, "K", 0)) in shapes:
                return f"{what}, and no table can read the head {head.name}: {reason}"
        return f"{what}, and no quantized head has its shape"
    return f"{what}, and the head {missed.head} is not that weight quantized: {missed.proof}"


def lost_table(heads: Heads, node: ir.Node, data: ir.Value | None) -> Mended | str:
    """Read a node whose data do not exist: the head on the same scales tells what was meant."""
    name = data.name if data is not None else "(none)"
    if data is not None and (data.producer() is not None or data.is_graph_input()):
        return f"its data {name} are computed in the graph"
    scales = stored_scales(node.inputs[2]) if len(node.inputs) > 2 else None
    fitting = heads.by_scales.get(scales, []) if scales is not None else []
    read = [(head, nbits_table(head)) for head in fitting]
    tables = [(head, table) for head, table in read if not isinstance(table, str)]
    if len(tables) == 1:
        head, table = tables[0]
        return table, f"its data {name} do not exist", f"the head {head.name} reads the same scales"
    if read and not tables:
        head, reason = read[0]
        return f"its data {name} do not exist, and no table can read the head {head.name} on its scales: {reason}"
    return f"its data {name} do not exist, and {len(tables)} heads read its scales"


def _form(matrix: Matrix) -> str:
    return f"{matrix.view.dtype}{list(matrix.shape)}".lower()
