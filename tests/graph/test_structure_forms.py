"""Networks of other forms than the committed exports, written as text; no name says what a weight does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.heads import head_nodes
from onnx_tailor.graph.meaning.roles import find_places

K, V = 16, 40
_SHAPES = {"W": (K, K), "U": (K, 2 * K), "D": (2 * K, K), "P": (K, 3 * K), "H": (K, V), "T": (V, K)}


def places(path: Path, body: str, *, prefix: str = "", opset: int = 23) -> dict[str, tuple[int | None, str | None]]:
    """The layer and role of each weight; the first letter of its name says its shape."""
    names = sorted({word for word in body.replace("(", " ").replace(")", " ").replace(",", " ").split() if "_" in word})
    weights = [name for name in names if name[0] in _SHAPES]
    declared = ", ".join(f"float[{_SHAPES[n[0]][0]}, {_SHAPES[n[0]][1]}] {n}" for n in weights)
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
        model (int64[b, s] input_ids) => (float[b, s, {V}] logits) <{declared}> {{
          x = Gather(T_, input_ids) {body} logits = MatMul(y, H_) }}"""
    )
    random = np.random.default_rng(0)
    del model.graph.initializer[:]
    for name in {*weights, "T_", "H_"}:
        value = random.standard_normal(_SHAPES[name[0]]).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, prefix + name))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in {*weights, "T_", "H_"}:
                node.input[index] = prefix + name
    onnx.save(model, path)
    loaded = load(path)
    found = find_places(loaded, head_nodes(loaded))
    return {
        (node.inputs[1].name or "").removeprefix(prefix): (place.layer, place.role)  # type: ignore[union-attr]
        for node, place in found.items()
    }


def attention(x: str, layer: int, operator: str = "Attention<q_num_heads=2, kv_num_heads=2>") -> str:
    return f"""q{layer} = MatMul({x}, W_q{layer}) k{layer} = MatMul({x}, W_k{layer}) v{layer} = MatMul({x}, W_v{layer})
        a{layer} = {operator}(q{layer}, k{layer}, v{layer}) o{layer} = MatMul(a{layer}, W_o{layer})"""


def mlp(x: str, layer: int) -> str:
    return f"u{layer} = MatMul({x}, U_{layer}) r{layer} = Relu(u{layer}) d{layer} = MatMul(r{layer}, D_{layer})"


def test_the_attention_operator_of_onnx(tmp_path: Path) -> None:
    body = f"{attention('x', 0)} h = Add(x, o0) {mlp('h', 0)} y = Add(h, d0)"
    assert places(tmp_path / "m.onnx", body) == {
        "W_q0": (0, "q"),
        "W_k0": (0, "k"),
        "W_v0": (0, "v"),
        "W_o0": (0, "o"),
        "U_0": (0, "up"),
        "D_0": (0, "down"),
        "H_": (None, "lm_head"),
    }


def test_attention_and_feed_forward_side_by_side_are_one_layer(tmp_path: Path) -> None:
    """As in GPT-J, Falcon and Phi-2; the file's order says nothing."""
    body = ""
    for layer, (x, y) in enumerate([("x", "h"), ("h", "y")]):
        body += f"{mlp(x, layer)} {attention(x, layer)} s{layer} = Add(o{layer}, d{layer}) {y} = Add({x}, s{layer}) "
    found = places(tmp_path / "m.onnx", body)
    assert {name: layer for name, (layer, _) in found.items() if name != "H_"} == {
        **{f"W_{part}{layer}": layer for part in "qkvo" for layer in (0, 1)},
        **{f"{part}_{layer}": layer for part in "UD" for layer in (0, 1)},
    }


def test_packed_multi_head_attention(tmp_path: Path) -> None:
    body = """p = MatMul(x, P_0) s = Reshape(p, five) a = com.microsoft.MultiHeadAttention<num_heads=2>(s)
        o = MatMul(a, W_o) y = Add(x, o)"""
    body = "five = Constant<value_ints=[0, 0, 2, 3, 8]>() " + body
    assert places(tmp_path / "m.onnx", body) == {"P_0": (0, "qkv"), "W_o": (0, "o"), "H_": (None, "lm_head")}


def test_key_and_value_from_one_projection(tmp_path: Path) -> None:
    body = """q = MatMul(x, W_q) c = MatMul(x, U_c) k, v = Split<axis=-1, num_outputs=2>(c)
        t = Transpose<perm=[0, 2, 1]>(k) z = MatMul(q, t) p = Softmax(z) a = MatMul(p, v)
        o = MatMul(a, W_o) y = Add(x, o)"""
    found = places(tmp_path / "m.onnx", body)
    assert found == {"W_q": (0, "q"), "U_c": (0, "kv"), "W_o": (0, "o"), "H_": (None, "lm_head")}


def test_layers_without_feed_forward_count_by_their_attentions(tmp_path: Path) -> None:
    body = f"{attention('x', 0)} h = Add(x, o0) {attention('h', 1)} y = Add(h, o1)"
    found = places(tmp_path / "m.onnx", body)
    assert [found[f"W_o{layer}"] for layer in (0, 1)] == [(0, "o"), (1, "o")]


def test_an_attention_without_output_projection_has_none(tmp_path: Path) -> None:
    body = """q = MatMul(x, W_q) k = MatMul(x, W_k) v = MatMul(x, W_v)
        a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)
        h = Add(x, a) g = MatMul(h, U_g) u = MatMul(h, U_u) s = Sigmoid(g) w = Mul(g, s) m = Mul(w, u)
        d = MatMul(m, D_d) y = Add(h, d)"""
    found = places(tmp_path / "m.onnx", body)
    assert {name: role for name, (_, role) in found.items()} == {
        "W_q": "q",
        "W_k": "k",
        "W_v": "v",
        "U_g": "gate",
        "U_u": "up",
        "D_d": "down",
        "H_": "lm_head",
    }


def test_a_layers_number_in_a_name_holds_for_the_layer(tmp_path: Path) -> None:
    """A part of a network, cut out by somebody: its first layer is the sixteenth."""
    body = f"{attention('x', 0)} h = Add(x, o0) {mlp('h', 0)} y = Add(h, d0)"
    found = places(tmp_path / "m.onnx", body, prefix="model.layers.16.")
    assert found["D_0"] == (16, "down")
    assert found["W_v0"] == (16, "v")


def test_a_router_and_its_experts(tmp_path: Path) -> None:
    experts = " ".join(
        f"""e{i} = MatMul(x, U_{i}) r{i} = Relu(e{i}) f{i} = MatMul(r{i}, D_{i})
        at{i} = Constant<value_ints=[{i}]>() w{i} = Gather<axis=-1>(chosen, at{i}) z{i} = Mul(f{i}, w{i})"""
        for i in (0, 1)
    )
    body = f"""two = Constant<value_ints=[2]>() scores = MatMul(x, W_r) p = Softmax(scores) chosen, index = TopK(p, two)
        {experts} sum = Add(z0, z1) y = Add(x, sum)"""
    found = places(tmp_path / "m.onnx", body)
    assert {name: role for name, (_, role) in found.items()} == {
        "W_r": "router",
        **{f"{part}_{i}": "expert" for part in "UD" for i in (0, 1)},
        "H_": "lm_head",
    }


def test_keys_and_values_that_are_outputs_are_no_heads(tmp_path: Path) -> None:
    """An encoder that yields a decoder's keys: turned as heads are, with no name and no table that says so."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
    model (float[b, s, 16] x) => (float[b, 4, s, 4] present_key) <float[16, 16] W, int64[4] shape> {
      k = MatMul(x, W) r = Reshape(k, shape) present_key = Transpose<perm = [0, 2, 1, 3]>(r) }"""
    model = onnx.parser.parse_model(text)
    del model.graph.initializer[:]
    weights = {"W": np.ones((16, 16), np.float32), "shape": np.array([0, 0, 4, 4])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.save(model, tmp_path / "m.onnx")
    assert not list(head_nodes(load(tmp_path / "m.onnx")))


def test_an_einsum_of_one_operand_is_no_product(tmp_path: Path) -> None:
    """XLNet reorders its scores by one."""
    body = "q = MatMul(x, W_q) k = MatMul(x, W_k) v = MatMul(x, W_v) t = Transpose<perm = [0, 2, 1]>(k)"
    body += ' a = MatMul(q, t) e = Einsum<equation = "bij->bij">(a) p = Softmax(e) m = MatMul(p, v) y = MatMul(m, W_o)'
    found = places(tmp_path / "m.onnx", body)
    assert {name: role for name, (_, role) in found.items() if name.startswith("W_")}.keys() == {
        "W_q",
        "W_k",
        "W_v",
        "W_o",
    }
