"""Valid language models that no exporter of today would write, but a stranger may: each maker turns one into odd form.

All compute logits = layers(E[ids]) @ E.T as `handmade.decoder` does, some with outputs besides.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import handmade
import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DATA = "model.onnx.data"
TABLE, HEAD, LAYER = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.down_proj.weight"


def write(path: Path, name: str) -> Path:
    """Write the odd model of this name."""
    model = handmade.decoder_proto(layers=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    ODD[name](model, path.parent)
    path.write_bytes(model.SerializeToString())
    return path


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """Return an initializer."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _value(model: onnx.ModelProto, name: str, *dims: int | str, kind: int = TensorProto.FLOAT) -> None:
    """Add an output of the graph."""
    model.graph.output.append(helper.make_tensor_value_info(name, kind, dims))


def old(model: onnx.ModelProto, folder: Path) -> None:
    """Opset 13 and IR version 3, where every initializer has to be an input as well."""
    model.ir_version, model.opset_import[0].version = 3, 13
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def oldest(model: onnx.ModelProto, folder: Path) -> None:
    """The oldest opset that ONNX Runtime takes: a Gemm must have a bias, a Slice has attributes."""
    model.ir_version, model.opset_import[0].version = 4, 7


def new(model: onnx.ModelProto, folder: Path) -> None:
    """The newest opset that ONNX Runtime knows, its newest operators, and 4-bit integers beside."""
    model.ir_version, model.opset_import[0].version = 12, 25
    model.graph.initializer.append(numpy_helper.from_array(np.ones(handmade.WIDTH, np.float32), "norm.weight"))
    model.graph.node[-1].input[0] = "normed"
    model.graph.node.insert(
        len(model.graph.node) - 1, helper.make_node("RMSNormalization", ["h2", "norm.weight"], ["normed"], name="norm")
    )
    model.graph.initializer.append(helper.make_tensor("four", TensorProto.UINT4, [3], [1, 2, 3]))
    model.graph.node.append(helper.make_node("Identity", ["four"], ["four_out"]))
    model.graph.node.append(helper.make_node("Cast", ["four_out"], ["four_cast"], to=TensorProto.FLOAT))
    _value(model, "four_cast", 3)


def functions(model: onnx.ModelProto, folder: Path) -> None:
    """A function that calls another, with the weight as a Constant of its body, called twice; attributes passed on."""
    local = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    tensor = weight(model, LAYER)
    body = [
        helper.make_node("Constant", [], ["w"], value=tensor),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Scaled", ["m"], ["y"], domain="local"),
    ]
    body[2].attribute.add(name="by", type=onnx.AttributeProto.FLOAT, ref_attr_name="by")
    inner = [helper.make_node("Constant", [], ["c"]), helper.make_node("Mul", ["v", "c"], ["z"])]
    inner[0].attribute.add(name="value_float", type=onnx.AttributeProto.FLOAT, ref_attr_name="by")
    model.functions.append(helper.make_function("local", "Scaled", ["v"], ["z"], inner, local[:1], ["by"]))
    model.functions.append(helper.make_function("local", "Layer", ["x"], ["y"], body, local, ["by"]))
    for node in (model.graph.node[1], model.graph.node[3]):
        node.op_type, node.domain, node.input[:] = "Layer", "local", node.input[:1]
        node.attribute.append(helper.make_attribute("by", 0.5))
    model.opset_import.append(helper.make_opsetid("local", 1))


def nested(model: onnx.ModelProto, folder: Path) -> None:
    """A Scan in a Loop in an If, the innermost of which multiplies by a weight of the whole graph."""
    info = helper.make_tensor_value_info
    scan = helper.make_graph(
        [
            helper.make_node("MatMul", ["row", LAYER], ["rotated"], name="innermost"),
            helper.make_node("Identity", ["sum"], ["sum_out"]),
        ],
        "scan",
        [info("sum", TensorProto.FLOAT, [1]), info("row", TensorProto.FLOAT, None)],
        [info("sum_out", TensorProto.FLOAT, [1]), info("rotated", TensorProto.FLOAT, ["rows", handmade.WIDTH])],
    )
    loop = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Scan", ["zero", "state"], ["sums", "next"], name="scan", body=scan, num_scan_inputs=1),
        ],
        "loop",
        [info("i", TensorProto.INT64, []), info("going", TensorProto.BOOL, []), info("state", TensorProto.FLOAT, None)],
        [info("goes_on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None)],
    )
    then = helper.make_graph(
        [helper.make_node("Loop", ["two", "", "h0"], ["looped"], name="loop", body=loop)],
        "then",
        [],
        [info("looped", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h0"], ["same"])], "other", [], [info("same", TensorProto.FLOAT, None)]
    )
    model.graph.node.insert(1, helper.make_node("If", ["flag"], ["chosen"], then_branch=then, else_branch=other))
    model.graph.node[2].input[0] = "chosen"
    for name, value in {
        "flag": np.ones((), bool),
        "two": np.array(2, np.int64),
        "zero": np.zeros(1, np.float32),
    }.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))


def constants(model: onnx.ModelProto, folder: Path) -> None:
    """Every weight a Constant: raw, as single values, as a list of floats behind a Reshape, sparse."""
    table, layer, head = (weight(model, name) for name in (TABLE, LAYER, HEAD))
    values = numpy_helper.to_array(head).reshape(-1).tolist()
    head.ClearField("raw_data")
    head.float_data.extend(values)
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in (table, head)]
    flat = numpy_helper.to_array(layer).reshape(-1).tolist()
    nodes += [
        helper.make_node("Constant", [], ["flat"], value_floats=flat),
        helper.make_node("Constant", [], ["dims"], value_ints=[handmade.WIDTH, handmade.WIDTH]),
        helper.make_node("Reshape", ["flat", "dims"], [LAYER]),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Constant", [], ["words"], value_strings=["a", "b"]),
        helper.make_node("Mul", ["h2", "one"], ["scaled"]),
    ]
    for each in (table, layer, head):
        model.graph.initializer.remove(each)
    for node in reversed(nodes[:-1]):
        model.graph.node.insert(0, node)
    model.graph.node.insert(len(model.graph.node) - 1, nodes[-1])
    model.graph.node[-1].input[0] = "scaled"


def typed(model: onnx.ModelProto, folder: Path) -> None:
    """Half floats, written one by one as integers, and a bfloat16 layer."""
    for tensor in model.graph.initializer:
        kind = ml_dtypes.bfloat16 if tensor.name == LAYER else np.float16
        values = numpy_helper.to_array(tensor).astype(kind)
        tensor.ClearField("raw_data")
        tensor.data_type = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor.int32_data.extend(values.view(np.uint16).reshape(-1).tolist())
    model.graph.node.insert(0, helper.make_node("Cast", [LAYER], ["narrow"], to=TensorProto.FLOAT16))
    model.graph.node[2].input[1] = "narrow"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def sparse(model: onnx.ModelProto, folder: Path) -> None:
    """A layer as a sparse initializer with flat indices, a bias with indices of two dimensions."""
    layer = weight(model, LAYER)
    dense = numpy_helper.to_array(layer).copy()
    dense[np.abs(dense) < np.quantile(np.abs(dense), 0.9)] = 0
    model.graph.initializer.remove(layer)
    at = np.flatnonzero(dense)
    model.graph.sparse_initializer.add(
        values=numpy_helper.from_array(dense.reshape(-1)[at], LAYER),
        indices=numpy_helper.from_array(at.astype(np.int64), "at"),
        dims=dense.shape,
    )
    model.graph.sparse_initializer.add(
        values=numpy_helper.from_array(np.array([0.5, -0.5], np.float32), "bias"),
        indices=numpy_helper.from_array(np.array([[0, 3], [0, 7]], np.int64), "where"),
        dims=[1, handmade.WIDTH],
    )
    model.graph.node.insert(0, helper.make_node("Add", ["h2", "bias"], ["biased"]))
    model.graph.node.append(model.graph.node.pop(0))
    model.graph.node.append(model.graph.node.pop(-2))
    model.graph.node[-1].input[0] = "biased"


def described(model: onnx.ModelProto, folder: Path) -> None:
    """Texts everywhere: strings as a weight, documentation, metadata, annotations; training information besides."""
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], ["größer", "b"]))
    model.graph.node.append(helper.make_node("Identity", ["words"], ["words_out"]))
    _value(model, "words_out", 2, kind=TensorProto.STRING)
    model.doc_string = model.graph.doc_string = "Ein Modell"
    model.metadata_props.add(key="author", value="ünknown")
    model.graph.metadata_props.add(key="graph", value="1")
    weight(model, TABLE).doc_string = "the table"
    model.training_info.add().algorithm.name = "training"
    annotation = model.graph.quantization_annotation.add(tensor_name="h1")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=TABLE)


def shared(model: onnx.ModelProto, folder: Path) -> None:
    """One range of the data file under two names, another that overlaps it, and the head as the table itself."""
    table = numpy_helper.to_array(weight(model, TABLE))
    layer = numpy_helper.to_array(weight(model, LAYER))
    (folder / DATA).write_bytes(table.tobytes() + layer.tobytes())
    handmade.refer(weight(model, TABLE), location=DATA, offset=0, length=table.nbytes)
    head = weight(model, HEAD)
    head.dims[:] = table.shape
    handmade.refer(head, location=DATA, offset=0)  # the length may be missing
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Transpose", [HEAD], ["turned"], perm=[1, 0]))
    model.graph.node[-1].input[1] = "turned"
    for name in (LAYER, LAYER.replace("0", "1")):
        handmade.refer(weight(model, name), location=f"./{DATA}", offset=table.nbytes, length=layer.nbytes)
    window = model.graph.initializer.add(name="window", data_type=TensorProto.FLOAT, dims=[2, handmade.WIDTH])
    handmade.refer(window, location=DATA, offset=table.nbytes - 4 * handmade.WIDTH, length=8 * handmade.WIDTH)
    model.graph.node.append(helper.make_node("Identity", ["window"], ["window_out"]))
    _value(model, "window_out", 2, handmade.WIDTH)


def empty(model: onnx.ModelProto, folder: Path) -> None:
    """Tensors without elements, joined to others, inside and outside."""
    (folder / DATA).write_bytes(b"")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, handmade.WIDTH), np.float32), "nothing"))
    outside = model.graph.initializer.add(name="outside", data_type=TensorProto.FLOAT, dims=[0, handmade.WIDTH])
    handmade.refer(outside, location=DATA, offset=0, length=0)
    weight_ = model.graph.initializer.add(name="unread", data_type=TensorProto.FLOAT, dims=[handmade.WIDTH, 0])
    weight_.raw_data = b""
    model.graph.node.insert(0, helper.make_node("Concat", ["nothing", "outside", TABLE], ["joined"], axis=0))
    model.graph.node.append(helper.make_node("MatMul", ["h2", "unread"], ["no_columns"]))
    _value(model, "no_columns", "batch", "sequence", 0)
    _value(model, "joined", handmade.VOCABULARY, handmade.WIDTH)


def outputs(model: onnx.ModelProto, folder: Path) -> None:
    """The table, the head and a layer are outputs of the graph as well."""
    for name in (TABLE, HEAD, LAYER):
        _value(model, name, *weight(model, name).dims)


def names(model: onnx.ModelProto, folder: Path) -> None:
    """Nodes without names and with one name, values called as people call files, nodes in any order."""
    renamed = {TABLE: "a b/c*[0]?", LAYER: "größe {1}", "h1": "h:1", "m0": "'\""}
    for node in model.graph.node:
        node.input[:] = [renamed.get(each, each) for each in node.input]
        node.output[:] = [renamed.get(each, each) for each in node.output]
        node.name = "" if node.op_type == "Add" else f"{node.name} *?[{{"
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


ODD: dict[str, Callable[[onnx.ModelProto, Path], None]] = {
    each.__name__: each
    for each in (
        old,
        oldest,
        new,
        functions,
        nested,
        constants,
        typed,
        sparse,
        described,
        shared,
        empty,
        outputs,
        names,
    )
}
