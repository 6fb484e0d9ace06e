"""The pass `quantize`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import onnx_ir as ir

from onnx_tailor.calibration.goal import parse_goal
from onnx_tailor.errors import ModelError, OptionError
from onnx_tailor.graph.file.opset import obstacle, raise_opset
from onnx_tailor.graph.meaning.candidates import Candidate, find_candidates, layer_count
from onnx_tailor.graph.meaning.mixtures import FC1, Mixture, find_mixtures
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.graph.shapes import LEAST_OPSET
from onnx_tailor.passes.base import Circumstances, Pass
from onnx_tailor.passes.explanation import explain
from onnx_tailor.passes.input_statistics import DATA_METHODS, Choice, InputData
from onnx_tailor.passes.left_alone import left_alone
from onnx_tailor.passes.point_types import PointType, are_floats, check_points, instead_of_floats, is_gathered
from onnx_tailor.passes.quantize_mixture import match_mixture, rewrite_mixture
from onnx_tailor.passes.quantize_qdq import OPSET, match_qdq, rewrite_qdq
from onnx_tailor.passes.quantize_weight import SCALE_TYPES, rewrite, stored_bytes, widest
from onnx_tailor.passes.selectors import NodeRule, Selectable, Setting, idle, layer_ranges, select, split
from onnx_tailor.passes.set_weights import QuantizedInSet
from onnx_tailor.passes.unusable import unusable
from onnx_tailor.quant import BlockFormat
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import Target
from onnx_tailor.weights.quantize_job import QuantizeJob

Preset = Literal["rtn", "k_quant", "imatrix", "gptq", "gptaq", "best", "rtn_last", "k_quant_last", "k_quant_mixed"]
_UNKNOWN = {
    name: f"a dry run does not calibrate, and so knows nothing of {name}, nor of the time and memory that it takes"
    for name in DATA_METHODS
}
_DEFAULT_BLOCK = 32
_MIXED_ROLES = frozenset({"qkv", "kv", "v", "down"})


@dataclass(frozen=True, kw_only=True)
class Quantize(Pass):
    """Store weights with 2, 4 or 8 bits in blocks along the input dimension, each block with its own scale.

    Before: MatMul(h, W) + Gather(E, ids)                         W: [K, N] float
    After:  MatMulNBits(h, B, scales, zero_points) + GatherBlockQuantized(B, ids, scales, zero_points)
    A tied table is quantized once and read by both. Not exact: see `verify`.
    """

    name: ClassVar[str] = "quantize"
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("budget", "size", "kl"),)

    method: Preset = "k_quant"
    """How scales and codes are chosen. `imatrix` is k_quant with errors weighted by what the weights are multiplied by,
    `gptq` also lets the columns of a weight make up for each other, and `gptaq` for the quantized weights before them.
    `best` is gptaq with float16 scales and, where a goal is given, bits by measurement. `*_last` gives the head 8 bits;
    `k_quant_mixed` also a part of the layers."""
    calibration: Path | None = None
    """The file that `onnx-tailor calibrate` made of this model; a relative path starts at the recipe's folder, or,
    from the command line or where there is no such file, at the working directory. Without it the run itself
    calibrates, on a bundled text if there is a tokenizer.json beside the model."""
    bits: Literal[2, 4, 8, "float", "auto"] = 4
    """Bits of each weight that `nodes` does not name; `float` leaves those as they are; `auto` measures what each
    costs, and chooses by the goal."""
    budget: str | None = None
    """Goal of `bits: auto`: the mean bits of all weights, floats, scales and zero points included, as "4.7 bpw"."""
    size: str | None = None
    """Goal of `bits: auto` in the place of `budget`: what the file and its data may take together, as "180 MB"."""
    kl: float | None = None
    """Goal of `bits: auto` in the place of `budget`: the smallest file whose predictions diverge by no more, in nats a
    token on a bundled text."""
    plan: str | None = None
    """For `bits: auto`: a file to write with the choice as a recipe, to be read, edited and repeated."""
    block_size: int | Literal["auto"] | None = None
    """Weights along the input dimension that share a scale: a power of two from 16 to 256. `auto` lets `bits: auto`
    choose it as well. Without it 32, or `auto` for `best` with a goal on a target to which all sizes are alike."""
    symmetric: bool = False
    """Without zero points: a little smaller, a little less exact, right in more kernels."""
    zero_points: PointType = "integer"
    """`float`: those of MatMulNBits have the scales' type, more exact for more bytes, and slow where no kernel reads
    them beside codes. Tables and weights of 8 bits keep integers."""
    scales: Literal["model", "float16"] | None = None
    """The type in which scales are stored: that of the model, or float16 behind a Cast also where that is float32,
    half a bit less for each weight in blocks of 32. The search knows the scale as stored; ONNX Runtime widens it at
    load."""
    format: Literal["nbits", "qdq"] = "nbits"
    """The operators: MatMulNBits and GatherBlockQuantized of ONNX Runtime, or the standard DequantizeLinear with blocks
    (opset 21) in front of a MatMul, for other runtimes."""
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = None
    """MatMulNBits' attribute: 4 lets the CPU multiply in 8-bit integers, which is much faster; none leaves it out."""
    embeddings: bool = False
    """Quantize a token table that is not tied with a head as well. One that is the head of another file of the set is
    quantized with that one anyway."""
    nodes: Mapping[str, Setting | NodeRule] = field(default_factory=dict)
    """Settings by node, weight or module name (a glob pattern) or `role:NAME`; the first match wins."""

    def __post_init__(self) -> None:
        """Check what the types cannot say.

        Raises:
            OptionError: a block size is no power of two from 16 to 256, `layers` is no list of layers, `bits: auto` and
                a goal do not come together, zero points cannot be floats, or an option has nothing to work on.
        """
        goal = parse_goal(self.budget, self.size, self.kl)
        if self.method == "best":
            if goal is not None and self.bits not in {4, "auto"}:
                raise OptionError(f"`bits: {self.bits}` and a goal exclude each other", key=("bits",))
        elif (self.bits == "auto") != (goal is not None):
            goals = "`budget: 4.7 bpw`, `size: 180 MB` or `kl: 0.05`"
            raise OptionError(f"`bits: auto` and a goal ({goals}) need each other", key=("bits",))
        if self.plan is not None and goal is None:
            raise OptionError("`plan` is what a goal chose, and there is none", key=("plan",))
        if self.accuracy_level is not None and self.format == "qdq":
            raise OptionError(
                "`accuracy_level` is MatMulNBits' own, and `format: qdq` writes none", key=("accuracy_level",)
            )
        if self.block_size == "auto":
            if goal is None:
                raise OptionError("`block_size: auto` is for `bits: auto`", key=("block_size",))
        elif isinstance(self.block_size, int):
            _check_block_size(self.block_size, ("block_size",))
        check_points(self)
        for pattern, rule in self.nodes.items():
            if not isinstance(rule, NodeRule):
                continue
            if isinstance(rule.block_size, int):
                _check_block_size(rule.block_size, ("nodes", pattern, "block_size"))
            try:
                layer_ranges(rule.layers or "0")
            except ValueError as error:
                raise OptionError(
                    f'layers {rule.layers!r} is no list of layers such as "0-2,15-17"', key=("nodes", pattern, "layers")
                ) from error

    def prepare(self, model: TailorModel, circumstances: Circumstances) -> Pass:
        """Do as `prepare_set` for one file."""
        return self.prepare_set([model], circumstances)[0]

    def prepare_set(self, models: Sequence[TailorModel], circumstances: Circumstances) -> Sequence[Pass]:
        """Calibrate, where a method needs that and no file is given, and choose the bits that are `auto`.

        Raises:
            ModelError: a model cannot be run.
            OptionError: the goal cannot be reached, or a pattern of `nodes` matches no weight of the set.
        """
        found = self._explicit_method(circumstances.target)
        passes = found._for_each(models)
        calibrates = found.calibration is None and bool(found.methods() & DATA_METHODS)
        if calibrates and (found.bits == "auto" or not circumstances.dry_run):
            from onnx_tailor.passes.self_calibration import self_calibrated  # ONNX Runtime takes long to import

            passes = self_calibrated(passes, models, circumstances)
        prepared: Sequence[Pass] = passes
        if found.bits == "auto":
            from onnx_tailor.passes.automatic_bits import with_explicit_bits

            prepared = with_explicit_bits(passes, models, circumstances, own_calibration=calibrates)
        if "gptaq" not in found.methods():
            return prepared
        from onnx_tailor.passes.followed_inputs import with_drift

        return with_drift(prepared, models, circumstances)

    def _for_each(self, models: Sequence[TailorModel]) -> list[Quantize]:
        """Return for each file of a set the pass with those entries of `nodes` that mean a weight of it."""
        data = bool(self.methods() & DATA_METHODS)
        if not self.nodes or (len(models) == 1 and not data):  # `apply` looks at the entries soon enough
            return [self] * len(models)
        candidates: list[list[Selectable]] = [[*find_candidates(model), *find_mixtures(model)] for model in models]
        nodes = split(self.nodes, candidates, models)
        passes = [replace(self, nodes=each) for each in nodes]
        if data:  # it may be that of an entry alone
            passes = [each if each.methods() & DATA_METHODS else replace(each, calibration=None) for each in passes]
        return passes

    def _explicit_method(self, target: Target) -> Quantize:
        """Return what `best` stands for."""
        if self.method != "best":
            return self
        scales = self.scales or "float16"
        if parse_goal(self.budget, self.size, self.kl) is None:
            return replace(self, method="gptaq", scales=scales)
        any_block = target.any_block and self.format == "nbits"
        block = self.block_size or ("auto" if any_block else None)
        return replace(self, method="gptaq", scales=scales, bits="auto", block_size=block)

    @property
    def settled_block(self) -> int:
        """The size of blocks where no rule names one and none is chosen."""
        return self.block_size if isinstance(self.block_size, int) else _DEFAULT_BLOCK

    def methods(self) -> set[str]:
        """Return every method that the recipe names."""
        return {self.method, *(rule.method or "" for rule in self.nodes.values() if isinstance(rule, NodeRule))}

    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        """Quantize every weight that a rule, the preset or `bits` gives bits to.

        Raises:
            OptionError: a pattern of `nodes` matches no weight.
            ModelError: `k_quant_mixed` on a model whose layers cannot be told.
        """
        if self.format == "qdq":
            reason = obstacle(model, OPSET)
            if reason is not None:
                yield Skip(where=model.path.name, reason=f"DequantizeLinear has blocks from opset {OPSET} on; {reason}")
                return
        candidates = find_candidates(model)
        mixtures = find_mixtures(model)
        everything: list[Selectable] = [*candidates, *mixtures]
        rules = select(self.nodes, everything, [model])
        for pattern in idle(self.nodes, everything):
            yield Skip(where=pattern, reason="what this entry of `nodes` names is quantized already")
        layers = layer_count(candidates)
        inner = any(c.projections and c.place.role != "lm_head" for c in candidates)
        if self.method == "k_quant_mixed" and layers == 0 and inner:
            raise ModelError(
                f"{model.path}: k_quant_mixed gives bits by layer, but neither structure nor names tell this model's "
                "layers; use k_quant_last, or `nodes`"
            )
        data = InputData.open(self.calibration, self.methods())
        in_set = QuantizedInSet(model)
        yield from unusable(model)
        otherwise = "method" if self.method.endswith(("_last", "_mixed")) else "bits"
        for candidate in candidates:
            told = explain(candidate, self.nodes, otherwise)
            found = self.match(candidate, rules.get(candidate), layers, data, in_set)
            if candidate.tables and model.opset < LEAST_OPSET and not isinstance(found, Skip):
                reason = f"its opset is {model.opset}, and the nodes around rows of codes need {LEAST_OPSET}"
                found = Skip(where=candidate.name, reason=reason)
            raised = raise_opset(model, OPSET) if self.format == "qdq" and not isinstance(found, Skip) else None
            if raised is not None:
                yield raised
            done = found if isinstance(found, Skip) else self._rewrite(model, target, candidate, found)
            yield replace(done, details={**told, **done.details})
        for mixture in mixtures:
            yield self._mixture(model, target, mixture, rules.get(mixture))
        model.sweep()

    def match(
        self,
        candidate: Candidate,
        rule: NodeRule | None,
        layers: int,
        data: InputData | None,
        in_set: QuantizedInSet,
    ) -> QuantizeJob | Skip:
        """Decide how one weight is stored; edits nothing."""
        unshared = "that no head shares"
        if rule is None and candidate.tables and not candidate.projections:
            known = in_set.find(candidate.matrix.view)
            if known is not None and self._holds_rows(candidate, known[0]):
                return replace(known[0], name=candidate.matrix.name)
            if known is not None:
                unshared = f"whose head in {known[1]} is stored in a form of which no rows can be gathered"
        rule = rule or NodeRule()
        bits = rule.bits if rule.bits is not None else self._bits(candidate, layers)
        left = left_alone(candidate, rule, bits)
        if left is not None:
            return Skip(where=candidate.name, reason=left)
        fmt = self.format_of(rule, bits, candidate)
        uneven = [stack.tail[1] for stack in candidate.stacks if stack.tail[1] % fmt.block_size]
        if uneven:
            return Skip(
                where=candidate.name,
                reason=f"a stack of matrices whose rows of {uneven[0]} are no whole blocks of {fmt.block_size}",
            )
        if not (candidate.projections or candidate.stacks) and rule.bits is None and not self.embeddings:
            return Skip(
                where=candidate.name,
                reason=f"a token table {unshared}; `embeddings: true` or an entry of `nodes` quantizes it",
            )
        method = rule.method or self.method.removesuffix("_last").removesuffix("_mixed")
        chosen = Choice("rtn" if method == "rtn" else "k_quant")
        if method in DATA_METHODS:
            chosen = _by_data(candidate, method, fmt, data, in_set)
        integers = instead_of_floats(rule.zero_points or self.zero_points, fmt, candidate)
        remark = chosen.remark if integers in chosen.remark else "; ".join(filter(None, [chosen.remark, integers]))
        job = QuantizeJob(
            candidate.matrix.view,
            fmt,
            chosen.method,
            candidate.matrix.name,
            importance=chosen.importance,
            factor=chosen.factor,
            remark=remark,
        )
        if self.format == "qdq":
            refused = match_qdq(candidate, job)
            if refused is not None:
                return refused
        after = stored_bytes(job)
        if after >= candidate.matrix.view.nbytes:
            return Skip(where=candidate.name, reason=f"{after} bytes quantized, {job.view.nbytes} as it is")
        return job

    def _holds_rows(self, candidate: Candidate, job: QuantizeJob) -> bool:
        """Whether rows of a token table can be gathered as another file of the set stores them."""
        if self.format == "qdq":
            return not job.format.symmetric and match_qdq(candidate, job) is None
        return not job.format.float_points

    def _rewrite(self, model: TailorModel, target: Target, candidate: Candidate, job: QuantizeJob) -> Change:
        if self.format == "qdq":
            return rewrite_qdq(model, candidate, job)
        return rewrite(model, target, candidate, job, self.accuracy_level)

    def format_of(self, rule: NodeRule, bits: Setting | Literal["auto"], candidate: Candidate) -> BlockFormat:
        """Return how a weight is laid out."""
        fmt = self.block_format(rule, bits, widest(candidate), gathered=is_gathered(candidate))
        # Standard operators unpack the rows of a table by arithmetic on unsigned codes.
        return replace(fmt, symmetric=False) if self.format == "qdq" and candidate.tables else fmt

    def block_format(
        self, rule: NodeRule, bits: Setting | Literal["auto"], dtype: ir.DataType, *, gathered: bool
    ) -> BlockFormat:
        """Return how a weight that is read as `dtype` is laid out; `gathered` is whether rows of it are."""
        narrow = self.scales == "float16" and dtype == ir.DataType.FLOAT
        symmetric = self.symmetric if rule.symmetric is None else rule.symmetric
        points = rule.zero_points or self.zero_points
        return BlockFormat(
            bits=bits,  # type: ignore[arg-type]  # the words leave a weight as it is, or are gone since `prepare`
            block_size=rule.block_size or self.settled_block,
            symmetric=symmetric,
            scale_dtype="float16" if narrow else SCALE_TYPES[dtype],
            float_points=are_floats(points, bits, symmetric=symmetric, gathered=gathered),
        )

    def _mixture(self, model: TailorModel, target: Target, mixture: Mixture, rule: NodeRule | None) -> Change | Skip:
        """Quantize the experts of an MoE, or say why not."""
        rule = rule or NodeRule()
        bits = rule.bits if rule.bits is not None else self.bits
        if bits in {"float", "skip"}:
            return Skip(where=mixture.name, reason=f"left in float, as {'`nodes`' if rule.bits else '`bits`'} says")
        if self.format == "qdq":
            return Skip(where=mixture.name, reason="MoE is no standard operator, and has no form for them")
        weight = mixture.operand(FC1)
        if weight is None or weight.dtype not in {ir.DataType.FLOAT, ir.DataType.FLOAT16}:
            return Skip(where=mixture.name, reason="its experts are neither float32 nor float16")
        method = rule.method or self.method
        fmt = replace(self, scales="model").block_format(rule, bits, weight.dtype, gathered=True)
        remarks = ["nothing is known of what the operator multiplies inside"] if method in DATA_METHODS else []
        if (rule.zero_points or self.zero_points) == "float" and not fmt.symmetric:
            remarks.append("zero points stay integers, since QMoE takes no others")
        instead = "; ".join(remarks)
        found = match_mixture(mixture, target, fmt, "rtn" if method.startswith("rtn") else "k_quant", instead)
        return found if isinstance(found, Skip) else rewrite_mixture(model, mixture, found)

    def _bits(self, candidate: Candidate, layers: int) -> Setting | Literal["auto"]:
        """Return the bits that preset and `bits` give. k_quant_mixed's rule is that of the GenAI model builder."""
        if self.bits == "float" or not self.method.endswith(("_last", "_mixed")):
            return self.bits
        where = candidate.place
        if where.role == "lm_head":
            return 8
        if self.method == "k_quant_mixed" and where.role in _MIXED_ROLES and where.layer is not None:
            eighth, i = layers / 8, where.layer
            if i < eighth or i >= 7 * eighth or (i - round(eighth)) % 3 == 2:
                return 8
        return self.bits


def _by_data(
    candidate: Candidate, method: str, fmt: BlockFormat, data: InputData | None, in_set: QuantizedInSet
) -> Choice:
    """Return how a method that looks at data treats a weight: as another file does that has it, to be stored once."""
    known = in_set.find(candidate.matrix.view)
    if known is not None and known[0].format == fmt:
        job, file = known
        remark = "; ".join(filter(None, [f"as in {file}, which has the same weight", job.remark]))
        return Choice(job.method, job.importance, job.factor, remark)
    if data is not None:
        return data.choose(candidate, method)
    unread = f"{method} is not possible: no projection multiplies it"
    return Choice("k_quant", remark=_UNKNOWN[method] if candidate.projections else unread)


def _check_block_size(value: int, key: tuple[str, ...]) -> None:
    if value < 16 or value > 256 or value & (value - 1):
        near = min((16, 32, 64, 128, 256), key=lambda size: abs(size - value))
        raise OptionError(f"block_size {value} is no power of two from 16 to 256; did you mean {near}?", key=key)
