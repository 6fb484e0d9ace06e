"""`bits: auto` of the pass `quantize`: from a goal to explicit entries of `nodes`, for all files of a set together.

What is measured in nats competes for the bytes. Of the rest, each file gets as many bits a weight as the whole: chosen
by what its own outputs lose, or the same form everywhere where it cannot be run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from onnx_tailor.calibration.bit_budget import ROUNDS, Form, Plan, alike, within_bytes, within_divergence
from onnx_tailor.calibration.goal import parse_goal
from onnx_tailor.errors import OptionError
from onnx_tailor.graph.meaning.quantized import find_quantized
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.passes.judges import Judge, find_judges
from onnx_tailor.passes.plan_recipe import require_writable, write_plan
from onnx_tailor.passes.remarked import Remarked
from onnx_tailor.passes.selectors import NodeRule, Setting
from onnx_tailor.passes.set_parts import Part, Shared, bytes_left, exactly, find_shared

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Circumstances, Pass
    from onnx_tailor.passes.quantize import Quantize


def with_explicit_bits(
    passes: Sequence[Quantize], models: Sequence[TailorModel], circumstances: Circumstances, *, own_calibration: bool
) -> list[Pass]:
    """Return the passes with an entry of `nodes` for every weight that has no bits yet, by their goal.

    `own_calibration` says that the run itself made the calibration, which no other run will find.

    Raises:
        OptionError: the goal cannot be reached.
        ModelError: a model cannot be run.
    """
    options = passes[0]
    if options.plan is not None:
        require_writable(options.plan, circumstances)
    goal = parse_goal(options.budget, options.size, options.kl)
    assert goal is not None
    parts = [Part.of(each, model, circumstances) for each, model in zip(passes, models, strict=True)]
    one_store = circumstances.one_store or goal.file_bytes is None
    shared, equal = find_shared(parts, one_store=one_store)
    if not shared and any(find_quantized(model) for model in models):  # a run on what an earlier one wrote
        return [exactly(each, each.nodes) for each in passes]
    if not shared:
        raise OptionError("no weight is left whose bits could be chosen", key=("bits",))
    budget = bytes_left(goal, parts, shared, equal, one_store=one_store)
    judges = find_judges(parts, shared, circumstances)
    if budget is None:
        assert goal.kl is not None
        forms = _within_divergence(judges, goal.kl, circumstances)
    else:
        forms = _within_bytes(judges, budget)
    nodes = _nodes(parts, shared, forms)
    explicit = [
        exactly(part.options, _first(each, part.options.nodes)) for part, each in zip(parts, nodes, strict=True)
    ]
    if options.plan is not None:
        nodes_of_all = _united([each.nodes for each in explicit], options.nodes)
        calibration = next((each.calibration for each in passes if each.calibration is not None), None)
        united = replace(explicit[0], nodes=nodes_of_all, calibration=calibration)
        where = models[0].path.name if len(models) == 1 else f"{len(models)} files"
        said = f"{goal} for {where}"
        write_plan(options.plan, united, said, circumstances, keep_calibration=not own_calibration)
    remarks = _remarks(judges)
    return [Remarked(prepared=each, remarks=remarks[n]) if n in remarks else each for n, each in enumerate(explicit)]


def _within_bytes(judges: Sequence[Judge], budget: int) -> dict[int, Form]:
    """Return the form of each shared weight that costs least within `budget` bytes.

    Raises:
        OptionError: even the fewest bits are too many.
    """
    elements = sum(map(_elements, judges))
    forms: dict[int, Form] = {}
    for judge in judges:
        if not judge.in_nats:
            forms |= _share(judge, budget * _elements(judge) // elements)
    together = [judge for judge in judges if judge.in_nats]
    members = [at for judge in together for at in judge.members]
    if members:
        weights = [together[0].shared[at].weight for at in members]
        costs = [judge.costs[at] for judge in together for at in judge.members]
        left = budget - _stored(together[0].shared, forms)
        forms |= zip(members, within_bytes(weights, costs, left).forms, strict=True)
    return forms


def _within_divergence(judges: Sequence[Judge], limit: float, circumstances: Circumstances) -> dict[int, Form]:
    """Return the form of each shared weight so that no file's predictions diverge further.

    Raises:
        OptionError: no form is as near, or no file predicts.
        ModelError: what is rewritten cannot be run.
    """
    forms: dict[int, Form] = {}
    for judge in judges:
        if judge.in_nats:
            forms |= _reached(judge, limit, forms, circumstances)
    if not forms:
        raise OptionError(
            "nothing here yields logits, so no divergence can be kept; give `budget` or `size`", key=("kl",)
        )
    elements = sum(judges[0].shared[at].elements for at in forms)
    stored = _stored(judges[0].shared, forms)
    for judge in judges:
        if not judge.in_nats:
            forms |= _share(judge, stored * _elements(judge) // elements)
    return forms


def _reached(judge: Judge, limit: float, settled: Mapping[int, Form], circumstances: Circumstances) -> dict[int, Form]:
    measure = judge.measure
    assert measure is not None
    circumstances.progress.start("measuring what was chosen", measure.windows.size * ROUNDS, unit="tokens")

    def measured(plan: Plan) -> float:
        tried = {**settled, **dict(zip(judge.members, plan.forms, strict=True))}
        return judge.divergence(tried, circumstances, exact=True)

    weights, costs = [judge.shared[at].weight for at in judge.members], [judge.costs[at] for at in judge.members]
    plan = within_divergence(weights, costs, limit, measured)
    return dict(zip(judge.members, plan.forms, strict=True))


def _share(judge: Judge, budget: int) -> dict[int, Form]:
    """Return the forms of weights whose costs nothing else is comparable with, within their own budget.

    Raises:
        OptionError: even the fewest bits are too many.
    """
    weights = [judge.shared[at].weight for at in judge.members]
    if judge.measure is None:
        plan = alike(weights, budget)
    else:
        plan = within_bytes(weights, [judge.costs[at] for at in judge.members], budget)
    return dict(zip(judge.members, plan.forms, strict=True))


def _elements(judge: Judge) -> int:
    return sum(judge.shared[at].elements for at in judge.members)


def _stored(shared: Sequence[Shared], forms: Mapping[int, Form]) -> int:
    """Return the bytes of the weights in these forms."""
    return sum(shared[at].weight.sizes[form] for at, form in forms.items())


def _nodes(parts: Sequence[Part], shared: Sequence[Shared], forms: Mapping[int, Form]) -> list[dict[str, NodeRule]]:
    """Return for each file the entries of `nodes` that give its weights their forms."""
    found: list[dict[int, Form]] = [{} for _ in parts]
    for at, form in forms.items():
        for file, number in shared[at].places:
            found[file][number] = form
    return [part.entries(dict(sorted(own.items()))) for part, own in zip(parts, found, strict=True)]


def _united(
    nodes: Sequence[Mapping[str, Setting | NodeRule]], asked: Mapping[str, Setting | NodeRule]
) -> dict[str, Setting | NodeRule]:
    """Return the entries of all files as those of one recipe, those of the user's own last.

    Raises:
        OptionError: two files have different settings under one name.
    """
    united: dict[str, Setting | NodeRule] = {}
    for pattern, setting in ((p, s) for each in nodes for p, s in each.items() if asked.get(p) != s):
        if united.setdefault(pattern, setting) != setting:
            raise OptionError(
                f"two files have a weight {pattern!r} with different bits, which no recipe for both can say; leave "
                "`plan` out, or run them one by one",
                key=("plan",),
            )
    return _first(united, asked)


def _first(
    chosen: Mapping[str, Setting | NodeRule], asked: Mapping[str, Setting | NodeRule]
) -> dict[str, Setting | NodeRule]:
    """Return the entries that were chosen, and behind them those of the recipe; one pattern may stand in both."""
    return {**chosen, **{pattern: setting for pattern, setting in asked.items() if pattern not in chosen}}


def _remarks(judges: Sequence[Judge]) -> dict[int, dict[str, str]]:
    """Return by file and weight how bits were chosen, where that is not by the file's own predictions."""
    found: dict[int, dict[str, str]] = {}
    for judge in judges:
        names = [part.model.path.name for part in judge.parts]
        share = " within an even share of the goal" if len(names) > 1 else ""
        for at in judge.members:
            file, number = judge.shared[at].places[0]
            if judge.measure is None:
                remark = f"the same bits for all of this file{share}, since it cannot be run: {judge.reason}"
            elif not judge.in_nats:
                remark = f"bits by what the file's own outputs lose{share}, since it yields no logits"
            elif file != judge.file:
                remark = f"bits by what the predictions of {names[judge.file]} lose"
            else:
                continue
            found.setdefault(file, {})[judge.parts[file].weights[number].name] = remark
    return found
