"""The folder that transformers.js loads: names, chunks, `transformers.js_config` and shapes that it can read.

Read in transformers.js 4.3 (src/models/session.js, utils/model-loader.js, utils/dtypes.js, models/modeling_utils.js)
and run there, see docs/clients.md:
- models are `onnx/NAME[_SUFFIX].onnx`, where the suffix follows from the dtype that the user asks for;
- weights are `onnx/NAME_SUFFIX.onnx_data`, `..._data_1` and so on, as many as `use_external_data_format` says;
- empty caches are made of the inputs' shapes: any symbol but `batch_size` becomes 0 there, right for a length alone.
Version 3 takes the caches' type from `kv_cache_dtype`, which version 4 no longer needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import onnx_ir as ir

from onnx_tailor.errors import ModelError, UsageError
from onnx_tailor.graph.constants import is_constant
from onnx_tailor.graph.file.save import Storage
from onnx_tailor.graph.model import MICROSOFT, TailorModel, attribute, is_op
from onnx_tailor.graph.tables.plain_table import read_plain
from onnx_tailor.output.companions import Companion

CONFIG = "config.json"
MAX_SHARD = 2_000_000_000
"""Bytes of a data file: browsers hold no larger one in one buffer."""

_SUFFIXES = {
    "fp32": "",
    "fp16": "_fp16",
    "q8": "_quantized",
    "q4": "_q4",
    "q4f16": "_q4f16",
    "q2": "_q2",
    "q2f16": "_q2f16",
}
_ANY_SUFFIX = re.compile(r"_(fp16|int8|uint8|quantized|bnb4|q[124](f16)?)$")
_CACHES = ("past_key_values.", "past_conv", "past_ssm", "past_recurrent")
_BATCH = "batch_size"


def dtype(model: TailorModel) -> str:
    """Return what transformers.js calls the model: its fewest bits, and whether it computes in float16.

    Raises:
        ModelError: its inputs or outputs are bfloat16, which no JavaScript array holds.
    """
    kinds = {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    if ir.DataType.BFLOAT16 in kinds:
        raise ModelError(f"{model.path}: has bfloat16 inputs or outputs, which transformers.js cannot feed or read")
    half = ir.DataType.FLOAT16 in kinds
    bits = [_bits(node) for node in model.nodes()]
    fewest = min((each for each in bits if each), default=0)
    if not fewest:
        return "fp16" if half else "fp32"
    return "q8" if fewest == 8 else f"q{fewest}f16" if half else f"q{fewest}"


def _bits(node: ir.Node) -> int:
    """Return the bits of the weight that a node reads as codes; 0 for any other."""
    name = {"MatMulNBits": "bits", "GatherBlockQuantized": "bits", "QMoE": "expert_weight_bits"}.get(node.op_type)
    if name is not None and node.domain == MICROSOFT:
        return attribute(node, name, 4)
    plain = read_plain(node)
    if plain is not None:
        return plain.bits
    if is_op(node, "DequantizeLinear"):
        kind = node.inputs[0].dtype if node.inputs[0] is not None and is_constant(node.inputs[0]) else None
        return int(kind.bitwidth) if kind is not None and kind.bitwidth <= 8 else 0  # biases have 32
    return 8 if is_op(node, "MatMulInteger", "QLinearMatMul") else 0


def name_models(models: Sequence[TailorModel]) -> None:
    """Give each model the name under which transformers.js looks for it.

    Raises:
        ModelError: as `dtype`.
        UsageError: two models would have one name.
    """
    for model in models:
        stem = _ANY_SUFFIX.sub("", model.path.stem)
        model.file_name = f"{stem}{_SUFFIXES[dtype(model)]}.onnx"
    names = [model.file_name for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        which = ", ".join(model.path.name for model in models if model.file_name == twice)
        raise UsageError(f"{which}: would all be called {twice} for transformers.js; give one of them alone")


def fix_caches(model: TailorModel) -> None:
    """Write the cache inputs' sizes as numbers, and the batch's symbol as transformers.js knows it.

    Raises:
        ModelError: transformers.js has another name for a cache, or its head size is not known.
    """
    caches = [value for value in model.graph.inputs if (value.name or "").startswith("past")]
    renamed: dict[str, int | str] = {}
    for value in caches:
        if not (value.name or "").startswith(_CACHES):
            raise ModelError(
                f"{model.path}: transformers.js knows no cache called {value.name}; export the model with optimum, "
                "whose names it has"
            )
        dims = list(value.shape or ())
        for place, dim in enumerate(dims):
            symbol = dim.value if isinstance(dim, ir.SymbolicDim) else None
            if symbol is not None and place == 0:
                renamed[symbol] = _BATCH
            elif symbol is not None and place == len(dims) - 1 and len(dims) == 4:
                renamed[symbol] = _head_size(model)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([_resolved(dim, renamed) for dim in value.shape])


def _resolved(dim: int | ir.SymbolicDim, renamed: dict[str, int | str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return renamed.get(dim.value, dim.value) if dim.value is not None else None


def _head_size(model: TailorModel) -> int:
    from onnx_tailor.verify.facts import head_size  # loads ONNX Runtime, which no other output needs

    found = head_size(model.path)
    if found is None:
        raise ModelError(
            f"{model.path}: the caches' head size is a symbol, and neither genai_config.json nor config.json beside "
            "the model tells it; transformers.js needs the number"
        )
    return found


def configure(companion: Companion, models: Sequence[TailorModel], storage: Storage) -> Companion:
    """Return the config.json that tells transformers.js which files there are.

    Raises:
        ModelError: the file is no JSON object.
    """
    try:
        config = json.loads(companion.path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{companion.path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{companion.path}: holds no JSON object")
    known = config.get("transformers.js_config")
    ours = dict(known) if isinstance(known, dict) else {}
    dtypes = {_ANY_SUFFIX.sub("", model.path.stem): dtype(model) for model in models}
    ours["dtype"] = next(iter(dtypes.values())) if len(set(dtypes.values())) == 1 else dtypes
    chunks = {
        model.file_name: sum(name.startswith(store) for name in storage.plan.files)
        for model, store in zip(models, storage.stores, strict=True)
    }
    ours["use_external_data_format"] = {name: count for name, count in chunks.items() if count}
    halves = {
        dtype(model): "float16"
        for model in models
        if any((v.name or "").startswith("past") and v.dtype == ir.DataType.FLOAT16 for v in model.graph.inputs)
    }
    ours.pop("kv_cache_dtype", None)
    config["transformers.js_config"] = ours | ({"kv_cache_dtype": halves} if halves else {})
    return Companion(companion.path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
