"""Part of the pass `quantize`: what each weight would take in each form that `bits: auto` may choose."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnx_tailor.calibration.bit_budget import FLOAT, Form, Weighed
from onnx_tailor.graph.meaning.candidates import Candidate
from onnx_tailor.graph.meaning.mixtures import FC1, Mixture
from onnx_tailor.passes.input_statistics import DATA_METHODS, InputData
from onnx_tailor.passes.left_alone import left_alone
from onnx_tailor.passes.quantize_mixture import match_mixture
from onnx_tailor.passes.quantize_qdq import match_qdq
from onnx_tailor.passes.quantize_weight import stored_bytes
from onnx_tailor.passes.selectors import NodeRule, Rules
from onnx_tailor.quant.format import Bits
from onnx_tailor.report import Skip
from onnx_tailor.weights.quantize_job import QuantizeJob

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Circumstances
    from onnx_tailor.passes.quantize import Quantize

__all__ = ["weigh_all"]

_AT_ONE_SIZE: tuple[Bits, ...] = (2, 4, 8)
_FORMS = (Form(2, 16), Form(2, 32), Form(4, 128), Form(4, 64), Form(4, 32), Form(4, 16), Form(8, 128), Form(8, 32))
"""What is tried where the block size is free: kernels everywhere take these blocks."""
_MEASURED = Form(4, 32)


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
        usable = bool(each.projections or each.stacks) or options.embeddings
        if rule.bits is None and usable and left_alone(each, rule, "auto") is None:
            found.append(_weighed(options, each, rule, data))
    for mixture in mixtures if options.format != "qdq" else ():  # it has no form for them
        rule = rules.get(mixture) or NodeRule()
        if rule.bits is None:
            found.append(_stack(options, mixture, rule, circumstances))
    return [each for each in found if each is not None]


def _forms(options: Quantize, rule: NodeRule) -> tuple[tuple[Form, ...], Form]:
    """Return the forms to choose from, and the one to measure in."""
    if options.block_size == "auto" and rule.block_size is None:
        forms: tuple[Form, ...] = _FORMS
        measured = _MEASURED
    else:
        block = rule.block_size or options.settled_block
        forms = tuple(Form(bits, block) for bits in _AT_ONE_SIZE)
        measured = Form(4, block)
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
    formats, sizes = {}, {}
    for form in forms:
        fmt = options.format_of(replace(rule, block_size=form.block_size), form.bits, candidate)
        job = QuantizeJob(view, fmt, "k_quant", candidate.name)
        if options.format != "qdq" or match_qdq(candidate, job) is None:
            formats[form], sizes[form] = fmt, stored_bytes(job)
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
            replace(rule, block_size=form.block_size), form.bits, weight.dtype, gathered=True
        )
        found = match_mixture(mixture, circumstances.target, fmt, "k_quant", "")
        if not isinstance(found, Skip):
            formats[form], sizes[form] = fmt, sum(stored_bytes(job) for job in found)
    return Weighed(mixture.name, mixture.place, views, formats, sizes, measured, None) if measured in formats else None
