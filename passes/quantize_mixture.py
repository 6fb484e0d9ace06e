"""Part of the pass `quantize`: MoE becomes QMoE.

Measured with onnxruntime 1.31 on the CPU: QMoE computes what MoE does with the dequantized weights, up to the order of
additions. With 8 bits, and with 2 in blocks of 32 or 64, the kernel rounds the activations to 8 bits as well, unless
ORT_QMOE_CPU_QNBIT_GEMM is `fp32`. QMoE alone always normalizes the weights of the experts that were chosen; MoE's other
way is had by its input `router_weights`, as its float32 kernel computes it; its float16 kernel yields zeros or worse
there.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnx_tailor.graph.meaning.mixtures import FC1, FC1_BIAS, FC2, FC2_BIAS, FC3, Mixture
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute
from onnx_tailor.quant import BlockFormat, Method
from onnx_tailor.report import Change, Skip
from onnx_tailor.targets import Target
from onnx_tailor.weights.quantize_job import QuantizeJob
from onnx_tailor.weights.tensors import Blob, WeightTensor

_SHOWN = frozenset({"cpu", "portable"})
"""Targets whose kernel was compared with MoE."""


def match_mixture(
    mixture: Mixture, target: Target, fmt: BlockFormat, method: Method, instead: str
) -> tuple[QuantizeJob, QuantizeJob] | Skip:
    """Decide how the experts are stored; edits nothing."""
    node, views = mixture.node, mixture.experts
    reason = _objection(mixture, target)
    if isinstance(views, str) or reason is not None:
        return Skip(where=mixture.name, reason=reason or str(views))
    for view, what in zip(views, ("hidden", "inner"), strict=True):
        if view.shape[1] % fmt.block_size:
            return Skip(
                where=mixture.name,
                reason=f"QMoE takes whole blocks alone, and the {what} size {view.shape[1]} is no multiple of "
                f"{fmt.block_size}",
            )
    names = [(value.name or "") if value is not None else "" for value in (node.inputs[FC1], node.inputs[FC2])]
    first, second = (
        QuantizeJob(view, fmt, method, name, remark=instead) for view, name in zip(views, names, strict=True)
    )
    return first, second


def _objection(mixture: Mixture, target: Target) -> str | None:
    """Return why QMoE would not be shown to compute the same."""
    node = mixture.node
    if target.name not in _SHOWN:
        return f"QMoE was compared with MoE on the CPU alone, not on {target.name}"
    if mixture.operand(FC3) is not None:
        return "it has a third matrix (FC3), which ONNX Runtime's CPU kernels of MoE and QMoE do not run"
    if attribute(node, "use_sparse_mixer", 0):
        return "with use_sparse_mixer ONNX Runtime's QMoE mixes the experts in another way than its MoE"
    activation = node.attributes["activation_type"].as_string() if "activation_type" in node.attributes else "relu"
    if activation == "swiglu" and attribute(node, "swiglu_fusion", 0) != 1:
        return "its SwiGLU is not interleaved, which ONNX Runtime's CPU kernels of MoE and QMoE do not run"
    return None


def rewrite_mixture(model: TailorModel, mixture: Mixture, jobs: tuple[QuantizeJob, QuantizeJob]) -> Change:
    """Put a QMoE in the place of the MoE."""
    node, name, fmt = mixture.node, mixture.name, jobs[0].format
    first, second = (_stored(model, mixture, index, job) for index, job in zip((FC1, FC2), jobs, strict=True))
    inputs: list[ir.Value | None] = [*node.inputs[:2], *first[:2], mixture.operand(FC1_BIAS)]
    inputs += [*second[:2], mixture.operand(FC2_BIAS), None, None, None, first[2], second[2], None]
    if not attribute(node, "normalize_routing_weights", 0):
        inputs.append(
            model.insert_before(
                node,
                "Softmax",
                [node.inputs[1]],
                attributes={"axis": -1},
                name=f"{name}/router_weights",
                dtype=node.inputs[1].dtype if node.inputs[1] is not None else None,
            )
        )
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Any] = dict(node.attributes)
    attributes |= {"expert_weight_bits": fmt.bits, "block_size": fmt.block_size}
    output = node.outputs[0]
    result = model.insert_before(
        node,
        "QMoE",
        inputs,
        domain=MICROSOFT,
        attributes=attributes,
        name=model.retire(node) or name,
        dtype=output.dtype,
    )
    made = result.producer()
    assert made is not None
    made.metadata_props.update(node.metadata_props)
    model.replace(output, result)
    symmetric = "symmetric" if fmt.symmetric else "asymmetric"
    instead = f" ({jobs[0].remark})" if jobs[0].remark else ""
    return Change(
        where=name,
        what=f"QMoE, {fmt.bits} bits, block {fmt.block_size}, {symmetric}, {jobs[0].label}{instead}",
        bytes_before=sum(job.view.nbytes for job in jobs),
        bytes_after=sum(size for job in jobs for output, size in job.outputs.items() if output != "corrections"),
        details={
            "weight": jobs[0].name,
            "bits": fmt.bits,
            "block_size": fmt.block_size,
            "symmetric": fmt.symmetric,
            "method": jobs[0].label,
            "role": "expert",
            "layer": mixture.place.layer,
        },
    )


def _stored(
    model: TailorModel, mixture: Mixture, index: int, job: QuantizeJob
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Register codes [experts, rows, bytes], scales and zero points [experts, rows, ...]."""
    weight, fmt = mixture.operand(index), job.format
    assert weight is not None
    assert weight.const_value is not None
    experts, rows, columns = (int(n) for n in weight.const_value.shape.numpy())
    blocks, scale = fmt.blocks(columns), weight.const_value.dtype

    def put(output: str, dtype: ir.DataType, last: int, name: str) -> ir.Value:
        return model.initializer(WeightTensor(Blob(job, output), dtype, (experts, rows, last)), f"{weight.name}_{name}")

    points = None
    if not fmt.symmetric:
        points = put("zero_points", ir.DataType.UINT8, fmt.zero_point_row_bytes(columns), "zero_points")
    codes = put("codes", ir.DataType.UINT8, columns * fmt.bits // 8, f"q{fmt.bits}")
    return codes, put("scales", scale, blocks, "scales"), points
