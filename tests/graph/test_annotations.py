"""Named sizes of intermediate values do not outlive a rewrite; those of the interface do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from language_model import Model, ids, run
from onnx import TensorProto, helper

from onnx_tailor import pipeline, recipe

if TYPE_CHECKING:
    from pathlib import Path


def annotated(path: Path) -> Path:
    """A model whose exporter named the sizes of intermediate values, one of them wrongly."""
    Model().save(path)
    model = onnx.load(path, load_external_data=False)
    names = ["/model/embed_tokens/Gather_output", "/model/layers.0/Add_output", "/model/layers.0/Relu_output"]
    for name, length in zip(names, ("sequence", "batch", "sequence"), strict=True):
        last = 80 if "Relu" in name else 48
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", length, last]))
    onnx.save(model, path)
    return path


def sizes(path: Path) -> dict[str, list[str | int]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
    }


def test_a_rewritten_model_names_the_sizes_of_its_interface_only(tmp_path: Path) -> None:
    source = annotated(tmp_path / "model.onnx")
    pipeline.run(recipe.load("k-quant"), source, tmp_path / "out")
    found = sizes(tmp_path / "out" / "model.onnx")
    assert found.pop("input_ids") == ["batch", "sequence"]
    assert found.pop("logits") == ["batch", "sequence", 70]
    assert found["/model/layers.0/Relu_output"] == [0, 0, 80]
    assert not [name for name, dims in found.items() if any(isinstance(dim, str) for dim in dims)]
    assert run(tmp_path / "out" / "model.onnx", {"input_ids": ids(Model())})["logits"].shape == (2, 5, 70)


def test_a_run_that_changes_nothing_leaves_them(tmp_path: Path) -> None:
    source = annotated(tmp_path / "model.onnx")
    file = tmp_path / "r.yaml"
    file.write_text("recipe: 1\npasses: [reshape-dim]\n")
    pipeline.run(recipe.load(str(file)), source, tmp_path / "out")
    assert sizes(source).items() <= sizes(tmp_path / "out" / "model.onnx").items()
