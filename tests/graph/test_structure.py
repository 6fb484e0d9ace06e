"""Roles and layers of real exports, told with every name taken away."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.heads import head_nodes
from onnx_tailor.graph.meaning.roles import find_places
from onnx_tailor.graph.model import TailorModel

EXPORTS = Path(__file__).parents[1] / "fixtures" / "exports"
SEPARATE = ("q", "k", "v", "o", "gate", "up", "down")
PACKED = ("qkv", "o", "gate_up", "down")
SEQ2SEQ_DECODER = ("q", "q", "k", "k", "v", "v", "o", "o", "up", "down")


def layers(*roles: tuple[str, ...], head: int = 1) -> Counter[tuple[int | None, str]]:
    counted = Counter((layer, role) for layer, each in enumerate(roles) for role in each)
    return counted + Counter({(None, "lm_head"): head})


EXPERTS = ("q", "k", "v", "o", "router", *["expert"] * 12)
CONVOLUTION = ("conv_in", "conv_out", "gate", "up", "down")
EXPECTED = {
    "dynamo-llama-fp32/model.onnx": layers(SEPARATE, SEPARATE),
    "dynamo-lfm2-fp32/model.onnx": layers(CONVOLUTION, SEPARATE, CONVOLUTION),
    "torchscript-phi3-fp32/model.onnx": layers(PACKED, PACKED),
    # Encoder and decoder in one file: each counts its own layers.
    "torchscript-t5-fp32/model.onnx": layers(*[(*SEQ2SEQ_DECODER, "q", "k", "v", "o", "up", "down")] * 2),
    "optimum-past-qwen3-moe-fp32/model.onnx": layers(EXPERTS, EXPERTS),
    "optimum-past-bart-fp32/encoder_model.onnx": layers(*[("q", "k", "v", "o", "up", "down")] * 2, head=0),
    "optimum-past-bart-fp32/decoder_with_past_model.onnx": layers(*[("q", "q", "k", "v", "o", "o", "up", "down")] * 2),
    # Both branches of an If hold the decoder; the second takes the keys of the encoder from the cache.
    "optimum-past-bart-fp32/decoder_model_merged.onnx": layers(
        *[(*SEQ2SEQ_DECODER, "q", "q", "k", "v", "o", "o", "up", "down")] * 2, head=2
    ),
    "genai-llama-int4-k_quant/model.onnx": layers(*[("qkv", "o", "gate", "up", "down")] * 2),
}


def anonymous(path: Path) -> TailorModel:
    model = load(path)
    inputs = {value for graph in model.graphs() for value in graph.inputs}
    for graph in model.graphs():
        for number, value in enumerate(list(graph.initializers.values())):
            value.name = f"w{id(graph)}_{number}"
    for number, node in enumerate(model.nodes()):
        node.name = f"n{number}"
        node.metadata_props.clear()
        for place, output in enumerate(node.outputs):
            if output not in inputs and not output.is_graph_output():
                output.name = f"v{number}_{place}"
    return model


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("read", [load, anonymous])
def test_every_product_of_an_export_has_its_role_and_layer(name: str, read) -> None:
    model = read(EXPORTS / name)
    places = find_places(model, head_nodes(model))
    assert Counter((place.layer, place.role) for place in places.values()) == EXPECTED[name]
    assert all(place.recognised_by.startswith("structure") for place in places.values())


@pytest.mark.parametrize("name", EXPECTED)
def test_names_agree_with_the_structure_node_by_node(name: str) -> None:
    with_names, without = load(EXPORTS / name), anonymous(EXPORTS / name)
    pairs = zip(with_names.nodes(), without.nodes(), strict=True)
    named, blind = (find_places(model, head_nodes(model)) for model in (with_names, without))
    for node, other in pairs:
        if node in named:
            assert (named[node].layer, named[node].role) == (blind[other].layer, blind[other].role), node.name
