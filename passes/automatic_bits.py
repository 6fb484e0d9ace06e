"""`bits: auto` of the pass `quantize`: from a budget to explicit entries of `nodes`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_tailor.calibration.bit_budget import CHOICES, Weighed, parse_budget, pattern, plan_bits
from onnx_tailor.calibration.tokens import choose
from onnx_tailor.errors import OptionError
from onnx_tailor.graph.candidates import Candidate, find_candidates
from onnx_tailor.graph.mixtures import find_mixtures
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.size import measure
from onnx_tailor.passes.input_statistics import DATA_METHODS, InputData
from onnx_tailor.passes.selectors import Bits, NodeRule, Selectable, Setting, select
from onnx_tailor.progress import Progress
from onnx_tailor.targets import TARGETS

if TYPE_CHECKING:
    from onnx_tailor.passes.quantize import Quantize

_BLANK = "# Chosen by `bits: auto` with `budget: {budget}` for {model}. Edit it, or run it again without measuring.\n"


def with_explicit_bits(options: Quantize, model: TailorModel, progress: Progress, *, own_calibration: bool) -> Quantize:
    """Return the pass with an entry of `nodes` for every weight that has no bits yet, within the budget.

    `own_calibration` says that the run itself made the calibration, which no other run will find.

    Raises:
        OptionError: the budget cannot be read, or is too small.
        ModelError: the model cannot be run.
    """
    assert options.budget is not None
    candidates = find_candidates(model)
    everything: list[Selectable] = [*candidates, *find_mixtures(model)]
    rules = select(options.nodes, everything)
    fixed = [c for c in candidates if c in rules and rules[c].bits is not None]
    free = [c for c in candidates if c not in fixed and (c.projections or options.embeddings)]
    if not free:
        raise OptionError("no weight is left whose bits could be chosen", key=("bits",))
    data = InputData.open(options.calibration, options.methods())
    weights = [_weighed(options, each, rules.get(each) or NodeRule(), data) for each in free]
    size = measure([model], 0)
    others = size.weight_bytes - sum(each.matrix.view.nbytes for each in free)
    # What a stack of experts costs cannot be measured one by one, so it gets the bits of a plain recipe.
    plain = {each: NodeRule(bits=4) for each in candidates if each.stacks} | rules
    fixed += [each for each in candidates if each.stacks and each not in fixed]
    others -= sum(each.matrix.view.nbytes - _stored(options, each, plain[each]) for each in fixed)
    budget = parse_budget(options.budget, size.parameters) - others

    # Codes that gptq would choose take long to find; the weights stand in the same order without.
    weighted = bool(options.methods() & DATA_METHODS)
    quick = replace(
        options,
        method="imatrix" if weighted else "k_quant",
        calibration=options.calibration if weighted else None,
        bits="float",
        budget=None,
        plan=None,
        embeddings=False,
    )

    def quantize(changed: TailorModel, bits: Mapping[str, Bits]) -> None:
        nodes = {name: replace(found[name], bits=number) for name, number in bits.items()}
        for _ in replace(quick, nodes=nodes).apply(changed, TARGETS["cpu"]):
            pass

    found = {pattern(each): replace(rules.get(each) or NodeRule(), layers=None, method=None) for each in free}
    chosen = plan_bits(model, weights, budget, choose(model.path), quantize, progress)
    nodes: dict[str, Setting | NodeRule] = {
        name: replace(rules.get(each) or NodeRule(), layers=None, bits=chosen[name])
        for each, name in zip(free, found, strict=True)
    }
    explicit = replace(options, bits=4, budget=None, plan=None, nodes=nodes | dict(options.nodes))
    if options.plan is not None:
        repeated = replace(explicit, calibration=None) if own_calibration else explicit
        Path(options.plan).write_text(_recipe(repeated, options.budget, model), encoding="utf-8")
    return explicit


def _weighed(options: Quantize, candidate: Candidate, rule: NodeRule, data: InputData | None) -> Weighed:
    importance = None if data is None else data.choose(candidate, "imatrix").importance
    formats = {bits: options.format(candidate, rule, bits) for bits in CHOICES}
    sizes = {bits: _stored(options, candidate, replace(rule, bits=bits)) for bits in CHOICES}
    return Weighed(candidate, formats, sizes, None if importance is None else importance.columns)


def _stored(options: Quantize, candidate: Candidate, rule: NodeRule) -> int:
    """Return the bytes of a weight with a rule's bits, or as it is."""
    if not isinstance(rule.bits, int):
        return candidate.matrix.view.nbytes
    return min(candidate.matrix.view.nbytes, options.stored_bytes(candidate, rule, rule.bits))


def _recipe(options: Quantize, budget: str, model: TailorModel) -> str:
    """Return the pass as a recipe in YAML, tie and layout around it as in the shipped ones."""
    lines = [
        _BLANK.format(budget=budget, model=model.path.name) + "recipe: 1",
        "passes:",
        "  - tie-embeddings",
        "  - quantize:",
        f"      method: {options.method}",
        f"      block_size: {options.block_size}",
        f"      symmetric: {json.dumps(options.symmetric)}",
        f"      embeddings: {json.dumps(options.embeddings)}",
    ]
    if options.calibration is not None:
        lines.append(f"      calibration: {json.dumps(str(options.calibration.resolve()))}")
    if options.accuracy_level is not None:
        lines.append(f"      accuracy_level: {options.accuracy_level}")
    lines.append("      nodes:")
    for name, setting in options.nodes.items():
        lines.append(f"        {json.dumps(name)}: {_setting(setting)}")
    return "\n".join([*lines, "  - reshape-dim", ""])


def _setting(setting: Setting | NodeRule) -> str:
    if not isinstance(setting, NodeRule):
        return str(setting)
    given = {name: value for name, value in vars(setting).items() if value is not None}
    return str(given["bits"]) if set(given) == {"bits"} else json.dumps(given)
