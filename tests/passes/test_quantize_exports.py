"""Quantization of real exports: the right projections get their bits, and a shared table is one table, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnx_tailor import pipeline, recipe
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.heads import QuantizedHead, find_heads
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.tables.read_block_table import FoundTable, find_block_tables
from onnx_tailor.passes.base import Pass
from onnx_tailor.passes.quantize import Quantize
from onnx_tailor.passes.reshape_dim import ReshapeDim
from onnx_tailor.passes.tie_embeddings import TieEmbeddings
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import TARGETS
from onnx_tailor.verify.compare import compare
from onnx_tailor.verify.tokens import random_tokens

EXPORTS = Path(__file__).parents[1] / "fixtures" / "exports"
VOCABULARY = 384
MIXED = [
    "dynamo-llama-fp32/model.onnx",
    "dynamo-llama-bf16/model.onnx",
    "dynamo-lfm2-fp32/model.onnx",
    "dynamo-gemma3-fp16/model.onnx",
    "dynamo-bert-fp16/model.onnx",
    "dynamo-whisper-fp16/model.onnx",
    "torchscript-gpt2-fp16/model.onnx",
    "torchscript-llama-fp16/model.onnx",
    "torchscript-phi3-fp32/model.onnx",
    "torchscript-t5-fp32/model.onnx",
    "optimum-past-bart-fp32/decoder_model_merged.onnx",
    "genai-phi4-fp16/model.onnx",
]
TIED = [
    "dynamo-llama-fp32/model.onnx",
    "dynamo-lfm2-fp32/model.onnx",
    "torchscript-t5-fp32/model.onnx",
    "torchscript-llama-fp16/model.onnx",
    "optimum-past-bart-fp32/decoder_with_past_model.onnx",
]


def without_names(model: TailorModel) -> TailorModel:
    for number, node in enumerate(model.nodes()):
        node.name = f"n{number}"
        node.metadata_props.clear()
    for graph in model.graphs():
        for number, value in enumerate(list(graph.initializers.values())):
            value.name = f"w{id(graph)}_{number}"
    return model


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", MIXED)
def test_k_quant_mixed_promotes_by_role_and_layer(name: str, named: bool) -> None:
    model = load(EXPORTS / name)
    if not named:
        without_names(model)
    done = list(Quantize(method="k_quant_mixed").apply(model, TARGETS["cpu"]))
    changes = [each.details for each in done if isinstance(each, Change)]
    assert changes
    for each in changes:
        # Of two layers the first, of three the first and the last: see the rule in passes/quantize.py.
        inner = each["role"] in {"v", "qkv", "kv", "down"} and each["layer"] in {0, 2}
        expected = 8 if inner or each["role"] == "lm_head" else 4
        assert each["bits"] == expected, each
    assert sum(each["role"] == "lm_head" for each in changes) == 1


def test_k_quant_mixed_has_nothing_to_do_on_a_quantized_model() -> None:
    model = load(EXPORTS / "genai-llama-int4-k_quant/model.onnx")
    done = list(Quantize(method="k_quant_mixed").apply(model, TARGETS["cpu"]))
    assert [each for each in done if isinstance(each, Change)] == []
    assert "11 projections are quantized already" in done[0].reason


@pytest.mark.parametrize(("name", "bits"), [*((name, 4) for name in TIED), (TIED[0], 8)])
def test_tied_and_quantized_the_table_is_one(name: str, bits: int, tmp_path: Path) -> None:
    passes: list[Pass] = [TieEmbeddings(), Quantize(bits=bits), ReshapeDim()]
    model, out = EXPORTS / name, tmp_path / "out"
    pipeline.run(recipe.of_passes(passes), model, out)
    compared = compare(model, out / model.name, random_tokens(VOCABULARY, windows=1, length=8))
    assert compared.kl_mean is not None
    assert compared.kl_mean < {4: 0.2, 8: 0.002}[bits]
    tailored = load(out / model.name)
    (head,) = [each for each in find_heads(tailored) if isinstance(each, QuantizedHead)]
    tables = [each for each in find_block_tables(tailored) if isinstance(each, FoundTable)]
    assert tables
    for table in tables:
        gathered = _gathered(out / model.name, table)
        np.testing.assert_array_equal(gathered, _multiplied(out / model.name, head.node.outputs[0].name or ""))
    again = pipeline.run(recipe.of_passes(passes), out / model.name, tmp_path / "again")
    assert [change for each in again.passes for change in each.changes] == []
    assert (tmp_path / "again" / model.name).read_bytes() == (out / model.name).read_bytes()


def _gathered(model: Path, table: FoundTable) -> np.ndarray:
    """The whole table [V, K], as the model's own nodes gather it."""
    whole = onnx.load(model)
    inputs, outputs = [table.ids.name or ""], [table.output.name or ""]
    del whole.graph.value_info[:]
    assert table.output.dtype is not None
    whole.graph.value_info.append(helper.make_tensor_value_info(outputs[0], int(table.output.dtype), None))
    part = onnx.utils.Extractor(whole).extract_model(inputs, outputs)
    part.graph.input[0].CopyFrom(helper.make_tensor_value_info(inputs[0], TensorProto.INT64, None))
    session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {inputs[0]: np.arange(VOCABULARY)[None]})
    return rows.reshape(VOCABULARY, -1)


def _multiplied(model: Path, output: str) -> np.ndarray:
    """The whole table [V, K], as the head's MatMulNBits multiplies by it: ones on a diagonal pick single weights."""
    whole = onnx.load(model)
    node = next(n for n in whole.graph.node if output in n.output)
    weights = [t for t in whole.graph.initializer if t.name in node.input]
    columns = next(a.i for a in node.attribute if a.name == "K")
    kind = next(t.data_type for t in weights if t.data_type != TensorProto.UINT8)
    graph = helper.make_graph(
        [node],
        "head",
        [helper.make_tensor_value_info(node.input[0], kind, [columns, columns])],
        [helper.make_tensor_value_info(output, kind, None)],
        weights,
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    part = helper.make_model(graph, opset_imports=imports, ir_version=9)
    session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    diagonal = np.eye(columns, dtype=helper.tensor_dtype_to_np_dtype(kind))
    (columns_of_table,) = session.run(None, {node.input[0]: diagonal})
    return columns_of_table.T


def test_a_tied_quantized_export_is_known_as_tied() -> None:
    model = load(EXPORTS / "genai-llama-int4-k_quant/model.onnx")
    (found,) = TieEmbeddings(required=True).apply(model, TARGETS["cpu"])
    assert isinstance(found, Skip)
    assert (found.reason, found.details) == ("it is tied already", {"tied": True})
