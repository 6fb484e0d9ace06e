"""onnxscript rewrite rules as users write them, for test_rewrite_rules.py."""

from __future__ import annotations

from typing import Any

from onnxscript.rewriter import RewriteRuleSet, pattern


def _doubled_target(op: Any, x: Any) -> Any:
    return op.Add(op.Relu(x), op.Relu(x))


def _relu(op: Any, x: Any) -> Any:
    return op.Relu(x)


def _max(op: Any, x: Any) -> Any:
    return op.Max(x, op.Sub(x, x))


def _explode(op: Any, x: Any) -> Any:
    raise KeyError("no such value")


relu_as_max = pattern.RewriteRule(_relu, _max)
as_list = [relu_as_max]
as_set = RewriteRuleSet([relu_as_max])
matches_nothing = pattern.RewriteRule(_doubled_target, _relu)
fails = pattern.RewriteRule(_relu, _explode)
no_rules: list[object] = []
