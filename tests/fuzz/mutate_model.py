"""Change a model's bytes, its protobuf's fields, what they mean together, and its data file."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import onnx
from fuzz_seeds import DATA, Seed, seeds
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

NASTY = [0, 1, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -1, -(2**31), -(2**63)]
TEXTS = ["", "\0", "..", "../secret", "/etc/passwd", "link", "model.onnx", DATA, "é" * 300, "h0", "logits", "-1", "1e3"]
OPERATORS = [
    "Add",
    "Cast",
    "Clip",
    "Concat",
    "Constant",
    "DequantizeLinear",
    "Einsum",
    "Gather",
    "Gemm",
    "Identity",
    "If",
    "Loop",
    "MatMul",
    "Mul",
    "Reshape",
    "Scan",
    "Shape",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "TopK",
    "Transpose",
    "Unsqueeze",
    "Where",
    "MatMulNBits",
    "GatherBlockQuantized",
    "FusedMatMul",
    "GroupQueryAttention",
    "QMoE",
    "Attention",
    "QuantizeLinear",
    "MatMulInteger",
]


def mutated(dice: random.Random) -> tuple[str, Seed]:
    """Return how a seed was changed, and the changed one."""
    seed = dice.choice(seeds())
    way = dice.choice(["bytes", "fields", "fields", "meaning", "meaning"])
    if way == "bytes":
        return way, Seed(seed.name, mutated_bytes(seed.model, dice), seed.data)
    model = onnx.ModelProto.FromString(seed.model)
    try:
        for _ in range(dice.choice([1, 1, 2, 3, 8])):
            change = mutate_field if way == "fields" else dice.choice(MEANINGS)
            change(model, dice)
        return way, Seed(seed.name, model.SerializeToString(), seed.data)
    except (ValueError, DecodeError):  # text that is no UTF-8, messages nested deeper than the library writes
        return way, seed


def write(seed: Seed, folder: Path, dice: random.Random) -> None:
    """Write a model into `folder`, and beside it a data file that is not always what it should be."""
    (folder / "model.onnx").write_bytes(seed.model)
    (folder / "link").symlink_to(folder.parent / "secret")
    path, size = folder / DATA, len(seed.data)
    match dice.randrange(12):
        case 0:
            path.write_bytes(seed.data[: dice.randrange(size + 1)])
        case 1:
            path.write_bytes(seed.data + bytes(dice.randrange(1, 5000)))
        case 2:
            path.symlink_to(folder.parent / "secret")
        case 3:
            dice.choice([os.mkfifo, os.mkdir, lambda _: None])(path)
        case 4:
            path.write_bytes(dice.randbytes(size))
        case _:
            path.write_bytes(seed.data)


def mutated_bytes(content: bytes, dice: random.Random) -> bytes:
    """Change, remove, insert or repeat bytes."""
    data = bytearray(content)
    for _ in range(dice.choice([1, 1, 2, 4, 16])):
        at = dice.randrange(len(data)) if data else 0
        if data and dice.random() < 0.7:  # most bytes are weights, of which any will do: aim at the tags at the ends
            at = dice.choice([dice.randrange(0, 400), len(data) - dice.randrange(1, 400)]) % len(data)
        match dice.randrange(4):
            case 0:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del data[at : at + dice.choice([1, 2, 100, 10_000])]
            case 2:
                data[at:at] = dice.randbytes(dice.choice([1, 2, 9]))
            case _:
                data[at:at] = data[: dice.randrange(1, 200)]
    return bytes(data)


def mutate_field(message: object, dice: random.Random) -> None:
    """Change one field somewhere below a protobuf message."""
    fields = message.DESCRIPTOR.fields  # type: ignore[attr-defined]
    present = [field for field, _ in message.ListFields()]  # type: ignore[attr-defined]
    field = dice.choice(present if present and dice.random() < 0.9 else fields)
    value = getattr(message, field.name)
    repeated = hasattr(value, "__len__") and not isinstance(value, str | bytes)
    if repeated and len(value) and _mutate_list(field, value, dice):
        return
    if field.message_type:
        inner = dice.choice(value) if repeated and len(value) else value.add() if repeated else value
        mutate_field(inner, dice)
        return
    try:
        new = _value(field, dice)
        if repeated:
            value[dice.randrange(len(value))] = new if len(value) else value.append(new)
        else:
            setattr(message, field.name, new)
    except (ValueError, TypeError, IndexError):  # outside the field's range
        return


def _mutate_list(field: object, value: object, dice: random.Random) -> bool:
    """Remove, repeat or overwrite an entry; return whether it was done."""
    match dice.randrange(10):
        case 0:
            del value[dice.randrange(len(value))]  # type: ignore[attr-defined,arg-type]
        case 1 if field.message_type:  # type: ignore[attr-defined]
            value.add().CopyFrom(dice.choice(value))  # type: ignore[attr-defined,arg-type]
        case 2:
            value.extend([dice.choice(value)] * dice.choice([1, 3]))  # type: ignore[attr-defined,arg-type]
        case 3 if len(value) > 1:  # type: ignore[arg-type]
            a, b = dice.randrange(len(value)), dice.randrange(len(value))  # type: ignore[arg-type]
            if field.message_type:  # type: ignore[attr-defined]
                value[a].CopyFrom(value[b])  # type: ignore[index]
            else:
                value[a] = value[b]  # type: ignore[index]
        case _:
            return False
    return True


def _value(field: object, dice: random.Random) -> object:
    kind = field.cpp_type  # type: ignore[attr-defined]
    if kind == 9:  # text or bytes
        text = dice.choice(TEXTS)
        return text.encode() if field.type == 12 else text  # type: ignore[attr-defined]
    if kind in {5, 6}:
        return dice.choice([float("nan"), float("inf"), -1.5, 1e38])
    if kind == 8:
        return dice.randrange(30)
    return dice.choice([*NASTY, dice.randrange(200)])


def _number(dice: random.Random) -> int:
    return dice.choice([*NASTY, dice.randrange(100)])


def _tensor(model: onnx.ModelProto, dice: random.Random) -> onnx.TensorProto:
    found = list(model.graph.initializer)
    found += [each.t for node in model.graph.node for each in node.attribute if each.HasField("t")]
    return dice.choice(found) if found else model.graph.initializer.add(name="w", data_type=1)


def _node(model: onnx.ModelProto, dice: random.Random) -> onnx.NodeProto:
    return dice.choice(model.graph.node) if model.graph.node else model.graph.node.add(op_type="Identity")


def _names(model: onnx.ModelProto) -> list[str]:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return [*names, *(each.name for each in (*model.graph.initializer, *model.graph.input)), "", "nowhere"]


def _shape(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    dims = list(tensor.dims)
    match dice.randrange(4):
        case 0:
            dims.insert(dice.randrange(len(dims) + 1), _number(dice))
        case 1 if dims:
            dims[dice.randrange(len(dims))] = _number(dice)
        case 2:
            dims = dims[::-1]
        case _:
            dims = [_number(dice) for _ in range(dice.choice([0, 1, 2, 3, 70]))]
    tensor.dims[:] = dims


def _type(model: onnx.ModelProto, dice: random.Random) -> None:
    _tensor(model, dice).data_type = dice.choice([*range(30), -1, 999])


def _external(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    tensor.data_location = dice.choice([TensorProto.EXTERNAL, TensorProto.EXTERNAL, TensorProto.DEFAULT])
    if dice.random() < 0.5:
        tensor.ClearField("raw_data")
    for key in dice.sample(["location", "offset", "length", "checksum", "basepath"], dice.choice([1, 2, 3])):
        value = dice.choice([*TEXTS, str(_number(dice)), str(2**70), " 1", "٣", "./" + DATA, "a/../" + DATA])
        tensor.external_data.add(key=key, value=DATA if key == "location" and dice.random() < 0.5 else value)


def _wire(model: onnx.ModelProto, dice: random.Random) -> None:
    """Let a node read or yield another value: circles, values twice, values from nowhere."""
    node = _node(model, dice)
    side = dice.choice([node.input, node.output])
    if len(side) and dice.random() < 0.8:
        side[dice.randrange(len(side))] = dice.choice(_names(model))
    else:
        side.append(dice.choice(_names(model)))


def _operator(model: onnx.ModelProto, dice: random.Random) -> None:
    node = _node(model, dice)
    node.op_type = dice.choice(OPERATORS)
    node.domain = dice.choice(["", "", "ai.onnx", "com.microsoft", "local", "\0"])


def _order(model: onnx.ModelProto, dice: random.Random) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    match dice.randrange(3):
        case 0:
            dice.shuffle(nodes)
        case 1 if nodes:
            nodes.append(dice.choice(nodes))
        case _:
            nodes = nodes[: dice.randrange(len(nodes) + 1)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _attribute(model: onnx.ModelProto, dice: random.Random) -> None:
    node = _node(model, dice)
    name = dice.choice(
        ["axis", "perm", "to", "bits", "block_size", "N", "K", "transB", "equation", "value", "body", "x"]
    )
    if node.attribute and dice.random() < 0.5:
        name = dice.choice(node.attribute).name
        del node.attribute[:]
    value = dice.choice([_number(dice), [_number(dice), 1], 0.5, "text", [], ["a"], TensorProto(data_type=1, dims=[1])])
    try:
        node.attribute.append(helper.make_attribute(name, value))
    except (ValueError, TypeError):  # an empty list, a number too large
        node.attribute.add(name=name, type=dice.randrange(16))


def _branch(model: onnx.ModelProto, dice: random.Random) -> None:
    """Put some nodes into the branch of an If, in the branch of an If, and so on."""
    for _ in range(dice.choice([1, 2, 5, 20, 60])):
        inner = onnx.GraphProto(name="inner", node=model.graph.node[-3:], output=model.graph.output)
        node = helper.make_node("If", [dice.choice(_names(model))], ["logits"], name="if", then_branch=inner)
        node.attribute.add(name="else_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(onnx.GraphProto(name="e"))
        del model.graph.node[-3:]
        model.graph.node.append(node)


def _role(model: onnx.ModelProto, dice: random.Random) -> None:
    """Make an input, an output, a constant or a sparse tensor of a weight, or of none."""
    tensor, name = _tensor(model, dice), dice.choice(_names(model))
    info = helper.make_tensor_value_info(name, dice.choice([1, 7, 10, 0]), dice.choice([None, [], [1], ["a", -1]]))
    match dice.randrange(6):
        case 0:
            model.graph.input.append(info)
        case 1:
            model.graph.output.append(info)
        case 2:
            model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        case 3:
            model.graph.sparse_initializer.add(values=tensor, indices=tensor, dims=[4, 4])
        case 4:
            tensor.name = name
        case _:
            model.graph.value_info.append(info)


def _imports(model: onnx.ModelProto, dice: random.Random) -> None:
    match dice.randrange(4):
        case 0:
            model.ir_version = _number(dice)
        case 1:
            model.opset_import.add(domain=dice.choice(["", "ai.onnx", "com.microsoft", "x"]), version=_number(dice))
        case 2 if model.opset_import:
            dice.choice(model.opset_import).version = _number(dice)
        case _:
            del model.opset_import[dice.randrange(2) :]


def _function(model: onnx.ModelProto, dice: random.Random) -> None:
    """Make a function of some nodes, which may call itself, and call it."""
    name = dice.choice(["f", "Outer", "MatMul"])
    nodes = [
        *model.graph.node[: dice.randrange(4)],
        helper.make_node(dice.choice([name, "Inner"]), ["x"], ["y"], domain="local"),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model.functions.append(helper.make_function(dice.choice(["local", ""]), name, ["x"], ["y"], nodes, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    node = _node(model, dice)
    node.op_type, node.domain = name, "local"


def _beside(model: onnx.ModelProto, dice: random.Random) -> None:
    """Add what few files have: training information, annotations, metadata, devices."""
    match dice.randrange(4):
        case 0:
            model.training_info.add().algorithm.CopyFrom(model.graph)
        case 1:
            model.graph.quantization_annotation.add(tensor_name=dice.choice(_names(model)))
        case 2:
            key = dice.choice(["onnx_tailor", "onnx-tailor", "pkg.torch.onnx.name_scopes", ""])
            where = dice.choice([model, _node(model, dice)])
            where.metadata_props.add(key=key, value=dice.choice([*TEXTS, "{", "[]", "[" * 5000, '{"a": NaN}']))
        case _:
            model.graph.output.add().CopyFrom(dice.choice(model.graph.output or [onnx.ValueInfoProto()]))


MEANINGS: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _shape,
    _type,
    _external,
    _wire,
    _wire,
    _operator,
    _order,
    _attribute,
    _attribute,
    _branch,
    _role,
    _role,
    _imports,
    _function,
    _beside,
)
