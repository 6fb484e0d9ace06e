"""A file that declares one symbolic length for values of two lengths, as the GenAI builder writes in float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_tailor.verify.compare import compare
from onnx_tailor.verify.session import LanguageModel

VOCABULARY, WIDTH = 32, 16


def contradicting(path: Path) -> Path:
    """Rows are gathered, turned, doubled along the sequence and halved again; the doubled ones are declared [b, s]."""
    square = np.eye(WIDTH, dtype=np.float32)[::-1].copy()
    table = np.random.default_rng(2).standard_normal((VOCABULARY, WIDTH), np.float32)
    info = helper.make_tensor_value_info
    made = helper.make_node
    nodes = [
        made("Gather", ["table", "input_ids"], ["rows"]),
        made("MatMul", ["rows", "square"], ["turned"]),  # `rows` are free now
        made("Concat", ["turned", "turned"], ["double"], axis=1),
        made("Split", ["double"], ["half", "other"], axis=1, num_outputs=2),
        made("Add", ["half", "other"], ["sum"]),
        made("MatMul", ["sum", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "contradicting",
        [info("input_ids", TensorProto.INT64, ["b", "s"])],
        [info("logits", TensorProto.FLOAT, ["b", "s", VOCABULARY])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(square, "square"),
            numpy_helper.from_array(np.ascontiguousarray(table.T), "head"),
        ],
        value_info=[info("double", TensorProto.FLOAT, ["b", "s", WIDTH])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_it_runs_without_reuse_of_buffers_and_says_so(tmp_path: Path) -> None:
    path = contradicting(tmp_path / "model.onnx")
    model = LanguageModel(path)
    ids = np.array([[3, 1, 4, 1, 5]])
    found = model.prefill(ids)["logits"]
    assert "enable_mem_reuse off" in model.note
    table = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    np.testing.assert_allclose(found[0], 2 * table[ids[0], ::-1] @ table.T, rtol=0, atol=1e-4)
    what = "model.onnx runs in ONNX Runtime only with enable_mem_reuse off: it declares one symbolic length"
    notes = compare(path, path).notes
    assert [note.removesuffix(" for values of different lengths.") for note in notes] == [
        f"The reference {what}",
        f"The candidate {what}",
    ]
