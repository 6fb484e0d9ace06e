"""One export by torch.onnx: `python torch_export.py dynamo|torchscript FAMILY DTYPE FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import families
import onnx
import torch
import transformers
from torch.export import Dim
from transformers import DynamicCache


class Decoder(torch.nn.Module):
    """A decoder with its cache as plain inputs and outputs, key and value of each layer in turn."""

    def __init__(self, model: Any, layers: int) -> None:
        super().__init__()
        self.m = model
        self.layers = layers

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> Any:
        """Return the logits [b, s, V] and each present [b, heads, past + s, size]."""
        cache = DynamicCache(config=self.m.config)
        for layer in range(self.layers):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        total = attention_mask.shape[1]
        queries = torch.arange(input_ids.shape[1])[:, None] + (total - input_ids.shape[1])
        seen = (torch.arange(total)[None, :] <= queries)[None, None] & (attention_mask[:, None, None, :] > 0)
        dtype = self.m.dtype
        mask: Any = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        if getattr(self.m.config, "layer_types", None):
            mask = {"full_attention": mask, "sliding_attention": mask}
        output = self.m(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        present = [each for layer in output.past_key_values.layers for each in (layer.keys, layer.values)]
        return output.logits, *present


class Whole(torch.nn.Module):
    """A model without cache."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.m = model
        self.names = names

    def forward(self, *inputs: Any) -> Any:
        """Return the logits."""
        arguments = dict(zip(self.names, inputs, strict=True))
        if "encoder_hidden_states" in arguments:
            arguments["encoder_outputs"] = (arguments.pop("encoder_hidden_states"),)
            # Without a mask transformers looks for packed sequences, by an operator that TorchScript cannot export.
            arguments["decoder_attention_mask"] = torch.ones_like(arguments["decoder_input_ids"])
        if "MaskedLM" not in type(self.m).__name__:
            arguments["use_cache"] = False
        return self.m(**arguments).logits


def main(exporter: str, family: str, dtype: str, folder: Path) -> None:
    """Export one model and write manifest.json beside it."""
    model = families.build(family, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    module, inputs, axes, outputs = _signature(family, model)
    names = list(inputs)
    dynamo = exporter == "dynamo"
    options: dict[str, Any] = {}
    if dynamo:
        dims = {name: Dim(name) for per_input in axes.values() for name in per_input.values()}
        shapes = [{axis: dims[name] for axis, name in axes[each].items()} for each in names]
        if isinstance(module, Decoder):
            options["dynamic_shapes"] = (*shapes[:3], tuple(shapes[3:]))
        else:
            options["dynamic_shapes"] = (tuple(shapes),)
    else:
        options["dynamic_axes"] = axes
    with torch.no_grad():
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(folder / "model.onnx"),
            dynamo=dynamo,
            input_names=names,
            output_names=outputs,
            **({} if dynamo else {"opset_version": 17}),
            **options,
        )
    model.config.save_pretrained(folder)
    _strip(folder / "model.onnx")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "onnx": onnx.__version__}
    (folder / "versions.json").write_text(json.dumps(versions) + "\n")


def _signature(family: str, model: Any) -> tuple[Any, dict[str, Any], dict[str, dict[int, str]], list[str]]:
    batch, length, before = 2, 5, 3
    ids = torch.randint(3, families.VOCABULARY, (batch, length))
    text = {0: "batch", 1: "sequence"}
    if family in families.ENCODERS | families.WITHOUT_CACHE:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if family in {"bert", "electra", "albert"}:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        return Whole(model, tuple(inputs)), inputs, dict.fromkeys(inputs, text), ["logits"]
    if family == "whisper":
        states = torch.randn(batch, 16, families.HIDDEN, dtype=model.dtype)
        inputs = {"decoder_input_ids": ids, "encoder_hidden_states": states}
        axes = {"decoder_input_ids": text, "encoder_hidden_states": {0: "batch", 1: "encoder_sequence"}}
        return Whole(model, tuple(inputs)), inputs, axes, ["logits"]
    if family in families.SEQ2SEQ:
        inputs = {
            "input_ids": torch.randint(3, families.VOCABULARY, (batch, 7)),
            "attention_mask": torch.ones(batch, 7, dtype=torch.int64),
            "decoder_input_ids": ids,
        }
        encoder = {0: "batch", 1: "encoder_sequence"}
        axes = {"input_ids": encoder, "attention_mask": encoder, "decoder_input_ids": text}
        return Whole(model, tuple(inputs)), inputs, axes, ["logits"]
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    layers = config.num_hidden_layers
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones(batch, before + length, dtype=torch.int64),
        "position_ids": torch.arange(before, before + length).repeat(batch, 1),
    }
    axes = {"input_ids": text, "attention_mask": {0: "batch", 1: "total"}, "position_ids": text}
    for part in parts:
        name = f"past_key_values.{part}"
        inputs[name] = torch.randn(batch, heads, before, size, dtype=model.dtype)
        axes[name] = {0: "batch", 2: "past"}
    return Decoder(model, layers), inputs, axes, ["logits", *(f"present.{part}" for part in parts)]


def _strip(path: Path) -> None:
    """Drop the stack traces, which name files of the machine."""
    proto = onnx.load(path, load_external_data=False)
    for node in (*proto.graph.node, *(n for f in proto.functions for n in f.node)):
        kept = [p for p in node.metadata_props if p.key.endswith(("name_scopes", "class_hierarchy"))]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.doc_string = ""
    for holder in (proto.graph, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del holder.metadata_props[:]
    onnx.save(proto, path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
