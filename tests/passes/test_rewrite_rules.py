"""The pass rewrite-rules: onnxscript's rules between our passes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from language_model import Model, ids, run

from onnx_tailor import pipeline, recipe
from onnx_tailor.errors import ModelError, UsageError

if TYPE_CHECKING:
    from onnx_tailor.report import Report


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rules.py a module that Python finds, as an installed one is."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.pop("rules", None)


def tailor(source: Path, out: Path, rules: str) -> Report:
    file = source.with_name("recipe.yaml")
    file.write_text(f"recipe: 1\npasses: [rewrite-rules: {{rules: '{rules}'}}, tie-embeddings]\n")
    return pipeline.run(recipe.load(str(file)), source, out)


@pytest.mark.parametrize("name", ["relu_as_max", "as_list", "as_set"])
def test_rules_are_applied_and_told(tmp_path: Path, name: str) -> None:
    spec = Model()
    source = spec.save(tmp_path / "model.onnx")
    (change,) = tailor(source, tmp_path / "out", f"rules:{name}").passes[0].changes
    assert change.where == f"rules:{name}, 2 times"
    assert change.details["operators"] == {"Max": 2, "Relu": -2, "Sub": 2}
    feeds = {"input_ids": ids(spec)}
    before, found = run(source, feeds)["logits"], run(tmp_path / "out" / "model.onnx", feeds)["logits"]
    assert np.abs(found - before).max() <= 2e-6 * np.abs(before).max()


def test_onnxscripts_own_rules_run(tmp_path: Path) -> None:
    spec = Model(head="gemm")
    source = spec.save(tmp_path / "model.onnx")
    tailor(source, tmp_path / "out", "onnxscript.rewriter:_DEFAULT_REWRITE_RULES")
    feeds = {"input_ids": ids(spec)}
    before, found = run(source, feeds)["logits"], run(tmp_path / "out" / "model.onnx", feeds)["logits"]
    assert np.abs(found - before).max() <= 2e-6 * np.abs(before).max()


def test_rules_that_match_nothing_are_a_skip(tmp_path: Path) -> None:
    source = Model().save(tmp_path / "model.onnx")
    (skip,) = tailor(source, tmp_path / "out", "rules:matches_nothing").passes[0].skips
    assert skip.reason == "no rule matches anywhere in this model"


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ("rules:fails", ModelError, "rules:fails failed: .*no such value"),
        ("rules:missing", UsageError, r"recipe\.yaml:2:\d+: rewrite-rules: rules 'rules:missing' cannot be imported"),
        ("rules:no_rules", UsageError, "is no RewriteRule, RewriteRuleSet or list of rules"),
        ("os:path", UsageError, "is no RewriteRule, RewriteRuleSet or list of rules"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path: Path, rules: str, error: type[Exception], message: str) -> None:
    source = Model().save(tmp_path / "model.onnx")
    with pytest.raises(error, match=message) as caught:
        tailor(source, tmp_path / "out", rules)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
