"""The option `scales` of quantize: float16 scales in a float32 model, behind a Cast that every reader sees through."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from language_model import Model, ids, run
from onnx import TensorProto
from stored import ranges

from onnx_tailor import pipeline, recipe
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.stored_weights import Blocks, stored_weights
from onnx_tailor.graph.tables.nbits_weight import nbits_nodes, nbits_table
from onnx_tailor.lint.rules import lint
from onnx_tailor.quant import BlockFormat, dequantize, quantize
from onnx_tailor.targets import TARGETS, TableForm

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_tailor.report import Report

SPEC = Model(columns=64, inner=96, vocabulary=300)


def tailor(source: Path, out: Path, *passes: str, target: str = "cpu") -> Report:
    file = source.with_name("recipe.yaml")
    file.write_text("recipe: 1\npasses: [" + ", ".join(passes) + "]\n")
    return pipeline.run(recipe.load(str(file)), source, out, target=target)


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("options", ["bits: 4", "bits: 4, symmetric: true", "bits: 8"])
def test_the_model_computes_with_float16_scales(tmp_path: Path, target: str, options: str) -> None:
    """Weights that are the stored values make the reference: float32 holds every product of code and scale."""
    source = SPEC.save(tmp_path / "model.onnx")
    quantizing = f"quantize: {{{options}, scales: float16}}"
    tailor(source, tmp_path / "out", "tie-embeddings", quantizing, "reshape-dim", target=target)
    out = tmp_path / "out" / "model.onnx"
    bits, symmetric = (8 if "8" in options else 4), "true" in options
    values = {
        name: dequantize(quantize(weight, fmt, "k_quant"), weight.shape[1], fmt)
        for name, weight in SPEC.values().items()
        for fmt in [BlockFormat(bits, 32, symmetric, "float16")]  # type: ignore[arg-type]
        if weight.ndim == 2
    }
    reference = replace(SPEC, weights={**values, "lm_head": values["table"]}).save(tmp_path / "reference.onnx")
    feeds = {"input_ids": ids(SPEC)}
    found, wanted = run(out, feeds)["logits"], run(reference, feeds)["logits"]
    # A correction is stored in float16 as well, and one more number is rounded to that type.
    layout = TARGETS[target].layout(TableForm(bits, zero_points=not symmetric, whole_points=True))
    limit = 1e-3 if layout == "correction" else 2e-6
    assert np.abs(found - wanted).max() <= limit * np.abs(wanted).max()


def test_scales_take_half_of_the_bytes_and_one_cast_serves_all_readers(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    wide = tailor(source, tmp_path / "wide", "tie-embeddings", "quantize: {}").after
    narrow = tailor(source, tmp_path / "out", "tie-embeddings", "quantize: {scales: float16}").after
    blocks = sum(weight.size for name, weight in SPEC.values().items() if name != "lm_head") // 32
    assert wide.weight_bytes - narrow.weight_bytes == 2 * blocks
    assert wide.parameters == narrow.parameters
    model = onnx.load(tmp_path / "out" / "model.onnx")
    casts = [node for node in model.graph.node if node.op_type == "Cast" and "scales" in node.input[0]]
    readers = [node for node in model.graph.node if node.op_type in {"MatMulNBits", "GatherBlockQuantized"}]
    assert len(casts) == len(readers) - 1  # table and head share one
    scales = {t.name: t.data_type for t in model.graph.initializer if t.name.endswith("scales")}
    assert set(scales.values()) == {TensorProto.FLOAT16}
    assert not [f for f in lint(tmp_path / "out" / "model.onnx", "cpu").findings if f.rule == "second-copy"]


@pytest.mark.parametrize("layout", ["alias", "shared", "plain", "reshape"])
def test_every_layout_is_read_again(tmp_path: Path, layout: str) -> None:
    """reshape-dim and tie-embeddings find the table in a file that has such scales, and keep its bytes."""
    source = SPEC.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", "tie-embeddings", "quantize: {symmetric: true, scales: float16}")
    first = tmp_path / "out" / "model.onnx"
    tailor(first, tmp_path / "two", f"reshape-dim: {{layout: {layout}}}")
    tailor(tmp_path / "two" / "model.onnx", tmp_path / "three", "reshape-dim", "tie-embeddings")
    last = tmp_path / "three" / "model.onnx"
    assert sorted(set(ranges(first).values())) == sorted(set(ranges(last).values()))
    feeds = {"input_ids": ids(SPEC)}
    for path in (tmp_path / "two" / "model.onnx", last):
        assert np.array_equal(run(path, feeds)["logits"], run(first, feeds)["logits"])


def test_readers_of_weights_see_through_the_cast(tmp_path: Path) -> None:
    source = SPEC.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", "tie-embeddings", "quantize: {scales: float16}")
    model = load(tmp_path / "out" / "model.onnx")
    assert not [node.name for node in nbits_nodes(model) if isinstance(nbits_table(node), str)]
    forms = [each.form for each in stored_weights(model)]
    assert len(forms) == 7
    assert all(isinstance(form, Blocks) and len(form.operands) == 3 for form in forms)


def test_a_float16_model_is_left_as_it_was(tmp_path: Path) -> None:
    source = replace(SPEC, dtype="float16").save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "one", "tie-embeddings", "quantize: {}")
    tailor(source, tmp_path / "two", "tie-embeddings", "quantize: {scales: float16}")
    names = ("model.onnx", "model.onnx.data")
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
