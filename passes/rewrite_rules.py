"""The pass `rewrite-rules`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnx_tailor.errors import ModelError, OptionError
from onnx_tailor.passes.base import Pass
from onnx_tailor.passes.imported import census, change, imported
from onnx_tailor.report import Change, Skip

if TYPE_CHECKING:
    from onnxscript.rewriter import RewriteRuleSet

    from onnx_tailor.graph.model import TailorModel
    from onnx_tailor.targets import Target


@dataclass(frozen=True, kw_only=True)
class RewriteRules(Pass):
    """Apply rewrite rules written for onnxscript: its own, such as its fusions, or those of an installed module.

    The rules run as trusted code on the graph in place; weights stay in their files unless a rule reads one. What
    they do is not checked here: use `verify`.
    """

    name: ClassVar[str] = "rewrite-rules"

    rules: str
    """Where the rules are: `package.module:name` of a RewriteRule, a RewriteRuleSet, or a list of rules."""

    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        """Apply the rules wherever they match.

        Raises:
            OptionError: there is no such object, or it holds no rules.
            ModelError: a rule raised.
        """
        rules, before = self._rules(), census(model)
        try:
            count = rules.apply_to_model(model.ir_model)
        except Exception as error:  # a rule is the user's code and may raise anything
            raise ModelError(f"{model.path}: {self.rules} failed: {type(error).__name__}: {error}") from error
        if not count:
            yield Skip(where=self.rules, reason="no rule matches anywhere in this model")
            return
        model.sweep()
        model.forget_names()
        yield change(f"{self.rules}, {count} times", before, model)

    def _rules(self) -> RewriteRuleSet:
        from onnxscript.rewriter import RewriteRule, RewriteRuleSet

        found = imported(self.rules, "rules")
        if isinstance(found, RewriteRuleSet):
            return found
        rules = [found] if isinstance(found, RewriteRule) else list(found) if isinstance(found, list | tuple) else []
        if not rules or not all(isinstance(rule, RewriteRule) for rule in rules):
            raise OptionError(
                f"rules {self.rules!r} is no RewriteRule, RewriteRuleSet or list of rules", key=("rules",)
            )
        return RewriteRuleSet(rules)
