"""Part of the pass `quantize`: the files of a set as `bits: auto` sees them, and the weights that several have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnx_tailor.calibration.bit_budget import FLOAT, Form, Weighed
from onnx_tailor.calibration.goal import Goal
from onnx_tailor.graph.file.opset import obstacle
from onnx_tailor.graph.file.save import outside
from onnx_tailor.graph.file.size import measure, nodes_bytes
from onnx_tailor.graph.meaning.candidates import Candidate, find_candidates
from onnx_tailor.graph.meaning.mixtures import find_mixtures
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.passes.input_statistics import DATA_METHODS, InputData, require_here
from onnx_tailor.passes.left_alone import left_alone
from onnx_tailor.passes.quantize_qdq import OPSET, match_qdq
from onnx_tailor.passes.quantize_weight import stored_bytes
from onnx_tailor.passes.selectors import NodeRule, Rules, Selectable, Setting, select
from onnx_tailor.passes.set_weights import earlier_equals
from onnx_tailor.passes.weigh import weigh_all
from onnx_tailor.quant.format import FLOAT_POINT_BITS
from onnx_tailor.targets import Target
from onnx_tailor.weights.equal import equal_views
from onnx_tailor.weights.jobs import CopyJob
from onnx_tailor.weights.protobuf import INLINE_LIMIT
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.tensors import Blob, WeightTensor
from onnx_tailor.weights.view import Window

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Circumstances
    from onnx_tailor.passes.quantize import Quantize

__all__ = ["Part", "Shared", "bytes_left", "find_shared"]

Equals = Mapping[Window, tuple[int, Window]]
"""By the view of a candidate, the file that has it first, and its view there."""
_GRAPH_BYTES, _GAPS = 2048, 6144
"""For each weight: its new nodes and names; the gaps between aligned tensors, where it is stored."""


@dataclass(frozen=True)
class Part:
    """One file of a set."""

    options: Quantize
    model: TailorModel
    candidates: Sequence[Candidate]
    rules: Rules
    own: Mapping[str, NodeRule]
    """What the recipe says of each weight, by its name."""
    weights: Sequence[Weighed]
    """Those that have no bits by a rule."""

    @classmethod
    def of(cls, options: Quantize, model: TailorModel, circumstances: Circumstances) -> Part:
        """Look at a model and what its calibration tells.

        Raises:
            OptionError: a pattern of `nodes` matches no weight.
            ModelError: its files are not on this machine.
        """
        candidates, mixtures = find_candidates(model), find_mixtures(model)
        everything: list[Selectable] = [*candidates, *mixtures]
        rules = select(options.nodes, everything, [model])
        require_here(model)
        data = InputData.open(options.calibration, options.methods())
        weights = weigh_all(options, candidates, mixtures, rules, data, circumstances)
        if options.format == "qdq" and obstacle(model, OPSET) is not None:
            weights = []
        own = {each.name: replace(rules.get(each) or NodeRule(), layers=None) for each in everything}
        return cls(options, model, candidates, rules, own, weights)

    def edit(self, forms: Mapping[int, Form], target: Target, *, exact: bool) -> Callable[[TailorModel], None]:
        """Return what quantizes the weights of these numbers; with `exact` as it will be done, else as is quick."""
        rules = self.entries(forms)
        tried = exactly(self.options, rules) if exact else _quickly(self.options, rules)

        def quantize(model: TailorModel) -> None:
            for _ in tried.apply(model, target):
                pass

        return quantize

    def entries(self, forms: Mapping[int, Form]) -> dict[str, NodeRule]:
        """Return the entries of `nodes` that give the weights of these numbers their forms."""
        found = {}
        for number, form in forms.items():
            each = self.weights[number]
            own = self.own[each.name]
            points = own.zero_points if form.bits in FLOAT_POINT_BITS else None
            size = form.block_size or own.block_size
            found[each.pattern] = replace(own, bits=form.bits, block_size=size, zero_points=points)
        return found


@dataclass(frozen=True)
class Shared:
    """One weight, and where it stands: several times where files have equal ones that are to be stored alike."""

    weight: Weighed
    """As the first file has it, but for its bytes: those of all places."""
    places: tuple[tuple[int, int], ...]
    """(number of the file, number among its weights)"""

    @property
    def file(self) -> int:
        """The first that has it."""
        return self.places[0][0]

    @property
    def elements(self) -> int:
        """Number of weights in it."""
        return sum(view.size for view in self.weight.views)


def find_shared(parts: Sequence[Part], *, one_store: bool) -> tuple[list[Shared], list[Equals]]:
    """Return the distinct weights of a set that have no bits yet, and for each file what an earlier one has as well.

    With `one_store` the files share one data file; else the bytes of a weight are those of all its copies.
    """
    equal = _stored_alike(parts) if len(parts) > 1 else [{}]
    places: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for file, part in enumerate(parts):
        views = {candidate.name: candidate.matrix.view for candidate in part.candidates}
        for number, each in enumerate(part.weights):
            view = views.get(each.name)  # none of a mixture
            first = (file, each.name) if view is None else equal[file].get(view, (file, view))
            places.setdefault((first, tuple(each.formats.items())), []).append((file, number))
    found = [Shared(parts[each[0][0]].weights[each[0][1]], tuple(each)) for each in places.values()]
    return [_as_stored(each, one_store=one_store) for each in found], equal


def _as_stored(each: Shared, *, one_store: bool) -> Shared:
    """Return the weight with the bytes of its copies: those of every file, or what is too small to be shared."""
    copies, weight = len(each.places) - 1, each.weight
    if not copies:
        return each
    sizes = dict(weight.sizes)
    for form, size in weight.sizes.items():
        parts = [size]
        if form in weight.formats:  # of several places only a single matrix has them
            job = QuantizeJob(weight.views[0], weight.formats[form], "k_quant", weight.name)
            parts = [nbytes for output, nbytes in job.outputs.items() if output != "corrections"]
        sizes[form] += copies * (sum(n for n in parts if n < INLINE_LIMIT) if one_store else size)
    return replace(each, weight=replace(weight, sizes=sizes))


def _stored_alike(parts: Sequence[Part]) -> list[Equals]:
    """Return for each file the candidates that an earlier one has as well, under the same rule of the recipe."""
    rules = [{each.matrix.view: part.own[each.name] for each in part.candidates} for part in parts]
    found: list[Equals] = []
    for file, earlier in enumerate(earlier_equals([part.model for part in parts])):
        found.append({v: (n, first) for v, (n, first) in earlier.items() if rules[n][first] == rules[file][v]})
    return found


def bytes_left(
    goal: Goal, parts: Sequence[Part], shared: Sequence[Shared], equal: Sequence[Equals], *, one_store: bool
) -> int | None:
    """Return the bytes that the goal leaves for the weights to be chosen; None where only a divergence is limited.

    With `one_store` the files of the set share one data file; else each stores all of its weights, and `shared` counts
    them so.
    """
    whole = measure([part.model for part in parts], 0, _same_tensors(parts, equal))
    around = 0
    for part, earlier in zip(parts, equal, strict=True):
        stored_here = sum(not (one_store and each.matrix.view in earlier) for each in part.candidates)
        around += nodes_bytes(part.model) + _GRAPH_BYTES * len(part.candidates) + _GAPS * stored_here
    goal_bytes = goal.weight_bytes(whole.parameters, around)
    if goal_bytes is None:
        return None
    stored = whole.weight_bytes if one_store else sum(measure([part.model], 0).weight_bytes for part in parts)
    others = stored - sum(each.weight.sizes[FLOAT] for each in shared)
    for part, earlier in zip(parts, equal, strict=True):
        others -= sum(_saved(part, each) for each in part.candidates if not (one_store and each.matrix.view in earlier))
    return goal_bytes - others


def _saved(part: Part, candidate: Candidate) -> int:
    """Return the bytes that a rule of the recipe saves on a weight."""
    rule = part.rules.get(candidate)
    if rule is None or not isinstance(rule.bits, int) or left_alone(candidate, rule, rule.bits) is not None:
        return 0
    view = candidate.matrix.view
    job = QuantizeJob(view, part.options.format_of(rule, rule.bits, candidate), "k_quant", candidate.name)
    refused = match_qdq(candidate, job) is not None or obstacle(part.model, OPSET) is not None
    if part.options.format == "qdq" and refused:
        return 0
    return max(0, view.nbytes - stored_bytes(job))


def _same_tensors(parts: Sequence[Part], equal: Sequence[Equals]) -> dict[Blob, Blob]:
    """Return for each blob that an earlier file of the set stores as well, that one's."""
    roots = [dict(_whole_tensors(part)) for part in parts]
    found: dict[Blob, Blob] = {}
    for own, earlier in zip(roots, equal, strict=True):
        for view, (file, first) in earlier.items():
            if view in own and first in roots[file]:
                found[own[view]] = roots[file][first]
    weights = {blob for own in roots for blob in own.values()}
    blobs = [tensor.blob for part in parts for tensor in outside(part.model) if tensor.blob not in weights]
    others = {blob.job.view: blob for blob in blobs if isinstance(blob.job, CopyJob)} if len(parts) > 1 else {}
    return found | {others[view]: others[first] for view, first in equal_views(list(others)).items()}


def _whole_tensors(part: Part) -> Iterator[tuple[Window, Blob]]:
    """Yield the view and the blob of each candidate that is a tensor of its own."""
    for candidate in part.candidates:
        tensor = candidate.matrix.root.const_value
        if isinstance(tensor, WeightTensor) and INLINE_LIMIT <= tensor.nbytes == candidate.matrix.view.nbytes:
            yield candidate.matrix.view, tensor.blob


def exactly(options: Quantize, nodes: Mapping[str, Setting | NodeRule]) -> Quantize:
    """Return the pass as it is to run, with these settings of nodes."""
    settled = replace(options, bits=4, budget=None, size=None, kl=None, plan=None, block_size=options.settled_block)
    return replace(settled, nodes=nodes)


def _quickly(options: Quantize, nodes: Mapping[str, Setting | NodeRule]) -> Quantize:
    """Return the pass for a measurement: codes that gptq would choose take long to find."""
    weighted = bool(options.methods() & DATA_METHODS) and options.calibration is not None
    plain = {name: replace(rule, method=None) for name, rule in nodes.items() if isinstance(rule, NodeRule)}
    return replace(
        exactly(options, plain),
        method="imatrix" if weighted else "k_quant",
        calibration=options.calibration if weighted else None,
        bits="float",
        embeddings=False,
    )
