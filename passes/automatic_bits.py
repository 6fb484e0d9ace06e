"""`bits: auto` of the pass `quantize`: from a goal to explicit entries of `nodes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from onnx_tailor.calibration.bit_budget import (
    FLOAT,
    ROUNDS,
    Form,
    Measure,
    Plan,
    Weighed,
    measured_costs,
    within_bytes,
    within_divergence,
)
from onnx_tailor.calibration.goal import Goal, parse_goal
from onnx_tailor.calibration.sensitivity import find_groups
from onnx_tailor.calibration.tokens import unseen
from onnx_tailor.errors import OptionError
from onnx_tailor.graph.file.size import graph_bytes, measure
from onnx_tailor.graph.meaning.candidates import Candidate, find_candidates
from onnx_tailor.graph.meaning.mixtures import FC1, Mixture, find_mixtures
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.passes.input_statistics import DATA_METHODS, InputData, require_here
from onnx_tailor.passes.plan_recipe import write_plan
from onnx_tailor.passes.quantize_mixture import match_mixture
from onnx_tailor.passes.quantize_weight import stored_bytes, widest
from onnx_tailor.passes.selectors import NodeRule, Selectable, Setting, select
from onnx_tailor.quant.format import Bits
from onnx_tailor.report import Skip
from onnx_tailor.weights.quantize_job import QuantizeJob

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Circumstances
    from onnx_tailor.passes.quantize import Quantize

_AT_ONE_SIZE: tuple[Bits, ...] = (2, 4, 8)
_FORMS = (Form(2, 16), Form(2, 32), Form(4, 128), Form(4, 64), Form(4, 32), Form(4, 16), Form(8, 128), Form(8, 32))
"""What is tried where the block size is free: kernels everywhere take these blocks."""
_MEASURED = Form(4, 32)
_GRAPH_BYTES = 8192
"""For each weight: its new nodes and names, and the gaps between aligned tensors."""

Rules = Mapping[Selectable, NodeRule]


def with_explicit_bits(
    options: Quantize, model: TailorModel, circumstances: Circumstances, *, own_calibration: bool
) -> Quantize:
    """Return the pass with an entry of `nodes` for every weight that has no bits yet, by its goal.

    `own_calibration` says that the run itself made the calibration, which no other run will find.

    Raises:
        OptionError: the goal cannot be reached.
        ModelError: the model cannot be run.
    """
    goal = parse_goal(options.budget, options.size, options.kl)
    assert goal is not None
    candidates, mixtures = find_candidates(model), find_mixtures(model)
    everything: list[Selectable] = [*candidates, *mixtures]
    rules = select(options.nodes, everything)
    require_here(model)
    data = InputData.open(options.calibration, options.methods())
    weights = weigh_all(options, candidates, mixtures, rules, data, circumstances)
    if not weights:
        raise OptionError("no weight is left whose bits could be chosen", key=("bits",))
    own = {each.name: replace(rules.get(each) or NodeRule(), layers=None) for each in everything}
    budget = _budget(goal, options, model, weights, candidates, rules)

    def quantize(changed: TailorModel, forms: Mapping[str, Form], *, exact: bool = False) -> None:
        rules = {each.pattern: _rule(own[each.name], forms[each.pattern]) for each in weights if each.pattern in forms}
        tried = _exactly(options, rules) if exact else _quickly(options, rules)
        for _ in tried.apply(changed, circumstances.target):
            pass

    runs = len(find_groups([each.place for each in weights])) + (0 if goal.kl is None else ROUNDS)
    costs_of = Measure.of(model, unseen(model.path), runs, circumstances.progress)
    costs = measured_costs(weights, costs_of, quantize)

    def divergence(plan: Plan) -> float:
        return costs_of.divergence(lambda changed, forms: quantize(changed, forms, exact=True), plan.forms)

    if goal.kl is not None:
        plan = within_divergence(weights, costs, goal.kl, divergence)
    else:
        assert budget is not None
        plan = within_bytes(weights, costs, budget)
    nodes: dict[str, Setting | NodeRule] = {
        each.pattern: _rule(own[each.name], plan.forms[each.pattern]) for each in weights
    }
    explicit = _exactly(options, nodes | dict(options.nodes))
    if options.plan is not None:
        write_plan(options.plan, explicit, f"{goal} for {model.path.name}", keep_calibration=not own_calibration)
    return explicit


def _exactly(options: Quantize, nodes: Mapping[str, Setting | NodeRule]) -> Quantize:
    """Return the pass as it is to run, with these settings of nodes."""
    size = 32 if options.block_size == "auto" else options.block_size
    settled = replace(options, bits=4, budget=None, size=None, kl=None, plan=None, block_size=size)
    return replace(settled, nodes=nodes)


def _quickly(options: Quantize, nodes: Mapping[str, Setting | NodeRule]) -> Quantize:
    """Return the pass for a measurement: codes that gptq would choose take long to find."""
    weighted = bool(options.methods() & DATA_METHODS)
    plain = {name: replace(rule, method=None) for name, rule in nodes.items() if isinstance(rule, NodeRule)}
    return replace(
        _exactly(options, plain),
        method="imatrix" if weighted else "k_quant",
        calibration=options.calibration if weighted else None,
        bits="float",
        embeddings=False,
    )


def _rule(own: NodeRule, form: Form) -> NodeRule:
    return replace(own, bits=form.bits, block_size=form.block_size or own.block_size)


def _budget(
    goal: Goal,
    options: Quantize,
    model: TailorModel,
    weights: list[Weighed],
    candidates: list[Candidate],
    rules: Rules,
) -> int | None:
    """Return the bytes that the goal leaves for the weights that are to be chosen."""
    size = measure([model], 0)
    whole = goal.weight_bytes(size.parameters, graph_bytes(model) + _GRAPH_BYTES * len(candidates))
    if whole is None:
        return None
    others = size.weight_bytes - sum(each.sizes[FLOAT] for each in weights)
    for each in candidates:
        rule = rules.get(each)
        if rule is not None and isinstance(rule.bits, int):
            job = QuantizeJob(
                each.matrix.view, options.block_format(rule, rule.bits, widest(each)), "k_quant", each.name
            )
            others -= max(0, each.matrix.view.nbytes - stored_bytes(job))
    return whole - others


def weigh_all(
    options: Quantize,
    candidates: list[Candidate],
    mixtures: list[Mixture],
    rules: Rules,
    data: InputData | None,
    circumstances: Circumstances,
) -> list[Weighed]:
    """Return what has no bits by a rule, and could have some."""
    found: list[Weighed | None] = []
    for each in candidates:
        rule = rules.get(each) or NodeRule()
        usable = each.place.role != "router" and (bool(each.projections or each.stacks) or options.embeddings)
        if rule.bits is None and usable:
            found.append(_weighed(options, each, rule, data))
    for mixture in mixtures:
        rule = rules.get(mixture) or NodeRule()
        if rule.bits is None:
            found.append(_stack(options, mixture, rule, circumstances))
    return [each for each in found if each is not None]


def _forms(options: Quantize, rule: NodeRule) -> tuple[tuple[Form, ...], Form]:
    """Return the forms to choose from, and the one to measure in."""
    block = rule.block_size or options.block_size
    if block == "auto":
        forms: tuple[Form, ...] = _FORMS
        measured = _MEASURED
    else:
        forms = tuple(Form(bits, block) for bits in _AT_ONE_SIZE)
        measured = Form(4, block)
    if options.format == "qdq":  # which has no 2 bits
        forms = tuple(form for form in forms if form.bits != 2)
    return forms, measured


def _weighed(options: Quantize, candidate: Candidate, rule: NodeRule, data: InputData | None) -> Weighed | None:
    method = rule.method or options.method
    known = None if data is None else data.choose(candidate, method if method in DATA_METHODS else "imatrix")
    importance = None if known is None else known.importance
    view, (forms, measured) = candidate.matrix.view, _forms(options, rule)
    inside = candidate.stacks[0].tail[1] if candidate.stacks else view.shape[1]
    matrix = view.reshape((view.shape[0] * view.shape[1] // inside, inside)) if candidate.stacks else view
    if candidate.stacks:  # whole blocks alone
        forms = tuple(form for form in forms if inside % form.block_size == 0)
    kind = widest(candidate)
    formats = {form: options.block_format(replace(rule, block_size=form.block_size), form.bits, kind) for form in forms}
    sizes = {form: stored_bytes(QuantizeJob(view, fmt, "k_quant", candidate.name)) for form, fmt in formats.items()}
    sizes = {form: min(size, view.nbytes) for form, size in sizes.items()} | {FLOAT: view.nbytes}
    columns = None if importance is None else importance.columns
    if measured not in formats:
        return None
    factor = None if known is None else known.factor
    return Weighed(candidate.name, candidate.place, (matrix,), formats, sizes, measured, columns, factor)


def _stack(options: Quantize, mixture: Mixture, rule: NodeRule, circumstances: Circumstances) -> Weighed | None:
    """Return the experts of a mixture, if they can be quantized."""
    views, weight = mixture.experts, mixture.operand(FC1)
    if isinstance(views, str) or weight is None or weight.dtype is None:
        return None
    forms, measured = _forms(options, rule)
    formats, sizes = {}, {FLOAT: sum(view.nbytes for view in views)}
    for form in forms:
        fmt = replace(options, scales="model").block_format(
            replace(rule, block_size=form.block_size), form.bits, weight.dtype
        )
        found = match_mixture(mixture, circumstances.target, fmt, "k_quant", "")
        if not isinstance(found, Skip):
            formats[form], sizes[form] = fmt, sum(stored_bytes(job) for job in found)
    return Weighed(mixture.name, mixture.place, views, formats, sizes, measured, None) if measured in formats else None
