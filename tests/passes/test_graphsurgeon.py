"""The pass graphsurgeon: other people's functions between our passes, with the weights left in their file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from language_model import Model, ids, run
from stored import ranges

from onnx_tailor import pipeline, recipe
from onnx_tailor.errors import ModelError, UsageError


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make surgeons.py a module that Python finds, as an installed one is."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.pop("surgeons", None)


def tailor(source: Path, out: Path, function: str, *, after: str = "") -> None:
    file = source.with_name("recipe.yaml")
    file.write_text(f"recipe: 1\npasses: [tie-embeddings, graphsurgeon: {{function: '{function}'}}{after}]\n")
    pipeline.run(recipe.load(str(file)), source, out)


@pytest.mark.parametrize("after", ["", ", quantize: {bits: 8}"])
def test_an_edit_is_applied_between_passes(tmp_path: Path, after: str) -> None:
    spec = Model()
    source = spec.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", "surgeons:soft_cap", after=after)
    feeds = {"input_ids": ids(spec)}
    before, found = run(source, feeds)["logits"], run(tmp_path / "out" / "model.onnx", feeds)["logits"]
    wanted = 30 * np.tanh(before / 30)
    assert np.abs(found - wanted).max() <= (0.02 if after else 1e-5) * np.abs(wanted).max()
    assert np.abs(before - wanted).max() > 1e-3 * np.abs(wanted).max()


def test_a_function_that_changes_nothing_keeps_every_byte(tmp_path: Path) -> None:
    spec = Model()
    source = spec.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", "surgeons:nothing")
    feeds = {"input_ids": ids(spec)}
    before, found = run(source, feeds)["logits"], run(tmp_path / "out" / "model.onnx", feeds)["logits"]
    assert np.abs(found - before).max() <= 2e-6 * np.abs(before).max()
    assert len(ranges(tmp_path / "out" / "model.onnx")) == len(ranges(source))


def test_what_nodes_and_the_model_say_of_themselves_stays(tmp_path: Path) -> None:
    """Roles and layers are told by it, and what earlier runs did."""
    source = Model().save(tmp_path / "model.onnx")
    model = onnx.load(source, load_external_data=False)
    model.metadata_props.add(key="license", value="apache-2.0")
    scopes = {node.name: f"scope of {node.name}" for node in model.graph.node if node.name}
    for node in model.graph.node:
        if node.name:
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes[node.name])
    source.write_bytes(model.SerializeToString())
    tailor(source, tmp_path / "out", "surgeons:nothing")
    found = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert {each.key: each.value for each in found.metadata_props}["license"] == "apache-2.0"
    kept = {node.name: each.value for node in found.graph.node for each in node.metadata_props}
    same = [name for name in scopes if name in {node.name for node in found.graph.node}]
    assert len(same) > 5
    assert all(kept[name] == scopes[name] for name in same)


def test_a_weight_that_it_adds_is_kept(tmp_path: Path) -> None:
    spec = Model()
    source = spec.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", "surgeons:adds_a_large_weight")
    feeds = {"input_ids": ids(spec)}
    wanted = run(source, feeds)["logits"] * np.linspace(1, 2, 70, dtype=np.float32)
    found = run(tmp_path / "out" / "model.onnx", feeds)["logits"]
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("surgeons:fails", ModelError, "surgeons:fails failed: KeyError: 'no such node'"),
        ("surgeons:reads_a_weight", ModelError, "surgeons:reads_a_weight reads a weight, which stays in its file"),
        (
            "surgeons:missing",
            UsageError,
            r"recipe\.yaml:2:51: graphsurgeon: function 'surgeons:missing' cannot be imported",
        ),
        ("no_such_module:f", UsageError, "cannot be imported .*write it as package.module:name"),
        ("surgeons:not_callable", UsageError, "is no function"),
        ("surgeons", UsageError, "cannot be imported"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, function: str, error: type[Exception], message: str
) -> None:
    source = Model().save(tmp_path / "model.onnx")
    with pytest.raises(error, match=message) as caught:
        tailor(source, tmp_path / "out", function)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
