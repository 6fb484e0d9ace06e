"""The skeleton against protobuf's own reading of the same file."""

from __future__ import annotations

from pathlib import Path

import handmade
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.file.load import load
from onnx_tailor.weights.protobuf import INLINE_LIMIT, read_skeleton


def filled(skeleton: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Put the bytes that the skeleton refers to back into it."""
    content = file.read_bytes()
    for tensor in _tensors(skeleton.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            entry = {e.key: e.value for e in tensor.external_data}
            assert entry["location"] == file.name
            begin = int(entry["offset"])
            tensor.raw_data = content[begin : begin + int(entry["length"])]
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
    return skeleton


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                found += _tensors(inner) if inner.ByteSize() else []
    return found


def nested() -> onnx.ModelProto:
    """Return a model with large tensors in a Constant node and in both branches of an If."""
    model = handmade.decoder_proto(layers=1)
    branches = {}
    for i, name in enumerate(("then_branch", "else_branch")):
        weight = numpy_helper.from_array(handmade.table(i + 5), f"w{i}")
        node = helper.make_node("Identity", [f"w{i}"], [f"out{i}"])
        info = helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, list(weight.dims))
        branches[name] = helper.make_graph([node], name, [], [info], [weight])
    model.graph.node.append(helper.make_node("If", ["flag"], ["chosen"], **branches))
    constant = numpy_helper.from_array(handmade.table(9), "c")
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=constant))
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    return model


@pytest.mark.parametrize("make", [handmade.decoder_proto, nested])
def test_the_skeleton_refers_to_the_bytes_it_leaves_out(tmp_path: Path, make: object) -> None:
    model = make()  # type: ignore[operator]
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    skeleton = read_skeleton(path)
    assert skeleton.ByteSize() < 4000 < path.stat().st_size
    assert filled(skeleton, path).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_typed_fields_of_floats_are_left_out_and_others_kept(tmp_path: Path) -> None:
    values = np.arange(INLINE_LIMIT, dtype=np.float32)
    model = handmade.decoder_proto(layers=1)
    typed = model.graph.initializer.add(name="typed", data_type=TensorProto.FLOAT, dims=[len(values)])
    typed.float_data.extend(values.tolist())
    integers = model.graph.initializer.add(name="integers", data_type=TensorProto.INT64, dims=[len(values)])
    integers.int64_data.extend(range(len(values)))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    found = {t.name: t for t in read_skeleton(path).graph.initializer}
    assert list(found["integers"].int64_data) == list(range(len(values)))
    entry = {e.key: e.value for e in found["typed"].external_data}
    begin = int(entry["offset"])
    assert path.read_bytes()[begin : begin + int(entry["length"])] == values.tobytes()


def test_small_tensors_stay_inside(tmp_path: Path) -> None:
    path = handmade.decoder(tmp_path / "m.onnx", rows=4, columns=16, data=None)
    assert not any(t.external_data for t in read_skeleton(path).graph.initializer if len(t.raw_data))


@settings(max_examples=150, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    content = handmade.decoder_proto().SerializeToString()
    path = tmp_path_factory.mktemp("cut") / "m.onnx"
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(ModelError, match=r"m\.onnx: "):
        read_skeleton(path)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx: "):
        read_skeleton(path)


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    content = bytes(INLINE_LIMIT)
    for _ in range(400):  # graph -> node -> attribute -> graph -> ...
        for number in (6, 5, 1):
            content = _field(number, content)
    path = tmp_path / "deep.onnx"
    path.write_bytes(_field(7, content))
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_skeleton(path)


def _field(number: int, content: bytes) -> bytes:
    size, prefix = len(content), bytearray([number << 3 | 2])
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + content


def test_a_file_larger_than_a_protobuf_may_be(tmp_path: Path) -> None:
    """Weights inside beyond 2 GB, which no other reader takes; a hole in the file stands for them."""
    size, path = 5 << 29, tmp_path / "large.onnx"
    rows = size // 4 // 1024
    tensor = onnx.TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[rows, 1024]).SerializeToString()
    model = handmade.decoder_proto(layers=1)
    model.graph.node[0].input[0] = "table"
    rest = model.graph.SerializeToString()
    model.ClearField("graph")
    inner = len(tensor) + 1 + len(_varint(size)) + size
    head = _tag(5) + _varint(inner) + tensor + _tag(9) + _varint(size)
    whole = len(head) + size + len(rest)
    with path.open("wb") as file:
        file.write(model.SerializeToString() + _tag(7) + _varint(whole) + head)
        begin = file.tell()
        file.seek(size, 1)
        file.write(rest)
    found = next(each for each in read_skeleton(path).graph.initializer if each.name == "table")
    entry = {each.key: each.value for each in found.external_data}
    assert entry == {"location": path.name, "offset": str(begin), "length": str(size)}
    assert load(path).graph.initializers["table"].const_value.nbytes == size


def _tag(number: int) -> bytes:
    return _varint(number << 3 | 2)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
