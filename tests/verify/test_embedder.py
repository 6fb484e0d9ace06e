"""A decoder that takes embeddings is fed those that the file beside it makes of the tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from bigram_models import K, V, bigram, weights
from onnx import TensorProto, helper, numpy_helper

from onnx_tailor.verify.compare import compare
from onnx_tailor.verify.session import LanguageModel


def split(folder: Path, table: np.ndarray, head: np.ndarray) -> Path:
    """Write the bigram model as embed_tokens.onnx and decoder_model.onnx; return the latter."""
    folder.mkdir()
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])
    embeds = helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["b", "s", K])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", V])
    parts = {
        "embed_tokens": ("Gather", ["w", "input_ids"], ids, embeds, table),
        "decoder_model": ("MatMul", ["inputs_embeds", "w"], embeds, logits, head),
    }
    for name, (op, inputs, given, made, weight) in parts.items():
        node = helper.make_node(op, inputs, [made.name])
        graph = helper.make_graph([node], name, [given], [made], [numpy_helper.from_array(weight, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, folder / f"{name}.onnx")
    return folder / "decoder_model.onnx"


def test_both_files_compute_what_the_one_did(tmp_path: Path) -> None:
    table, head = weights()
    whole, decoder = bigram(tmp_path / "model.onnx", table, head), split(tmp_path / "set", table, head)
    found = compare(whole, decoder)
    assert found.kl_max == 0
    assert found.tokens > 0


def test_without_that_file_the_embeddings_are_fixed_and_random(tmp_path: Path) -> None:
    decoder = split(tmp_path / "set", *weights())
    (tmp_path / "set" / "embed_tokens.onnx").write_bytes(b"no model")
    ids = np.array([[1, 2, 3]])
    first, second = (LanguageModel(decoder).prefill(given)["logits"] for given in (ids, ids + 1))
    assert first.any()
    np.testing.assert_array_equal(first, second)
