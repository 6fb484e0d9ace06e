"""The export: torch.onnx (dynamo) with a cache, named as optimum does, and its proof in ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch.export import Dim
from transformers import DynamicCache, LlamaForCausalLM

Array = np.ndarray[Any, np.dtype[Any]]

_KEPT_METADATA = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")


class WithCache(torch.nn.Module):
    """The model with its cache as plain inputs and outputs, key and value of each layer in turn."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return logits [batch, sequence, vocabulary] and each present [batch, heads, past + sequence, size].

        input_ids and position_ids are [batch, sequence], attention_mask is [batch, past + sequence]
        with 0 for padding, each past is [batch, heads, past, size]; past may be 0.
        """
        cache = DynamicCache(config=self.model.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        total = attention_mask.shape[1]
        before = total - input_ids.shape[1]
        keys = torch.arange(total)[None, :]
        queries = torch.arange(input_ids.shape[1])[:, None] + before
        seen = (keys <= queries)[None, None] & (attention_mask[:, None, None, :] > 0)
        dtype = self.model.dtype
        mask = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        output = self.model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache)
        present = [each for layer in output.past_key_values.layers for each in (layer.keys, layer.values)]
        return output.logits, *present


def export(model: LlamaForCausalLM, target: Path) -> None:
    """Write `target` and its data file, without the stack traces that name files of this machine."""
    config = model.config
    layers = range(config.num_hidden_layers)
    names = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)]
    batch, sequence, before = 2, 5, 3
    ids = torch.ones(batch, sequence, dtype=torch.int64)
    mask = torch.ones(batch, before + sequence, dtype=torch.int64)
    positions = torch.arange(before, before + sequence).repeat(batch, 1)
    shape = (batch, config.num_key_value_heads, before, config.head_dim)
    past = tuple(torch.zeros(shape, dtype=model.dtype) for _ in names)
    lengths = Dim("batch_size"), Dim("sequence_length"), Dim("past_sequence_length")
    with torch.no_grad():
        program = torch.onnx.export(
            WithCache(model).eval(),
            (ids, mask, positions, *past),
            dynamo=True,
            input_names=inputs,
            output_names=["logits", *(f"present.{n}" for n in names)],
            dynamic_shapes={
                "input_ids": {0: lengths[0], 1: lengths[1]},
                "attention_mask": {0: lengths[0], 1: Dim("total_sequence_length")},
                "position_ids": {0: lengths[0], 1: lengths[1]},
                "past": tuple({0: lengths[0], 2: lengths[2]} for _ in names),
            },
        )
    assert program is not None
    _strip(program.model)
    program.save(target, external_data=True)


def _strip(model: ir.Model) -> None:
    """Remove doc strings, and metadata other than the names of torch modules, in place."""
    graphs: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    for graph in graphs:
        for node in graph.all_nodes():
            node.doc_string = None
            kept = {key: node.metadata_props[key] for key in _KEPT_METADATA if key in node.metadata_props}
            node.metadata_props.clear()
            node.metadata_props.update(kept)


class Runtime:
    """A session of ONNX Runtime on the CPU that feeds the cache."""

    def __init__(self, path: Path) -> None:
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._past = [each for each in self._session.get_inputs() if each.name.startswith("past_key_values.")]

    def __call__(self, ids: Array, past: list[Array] | None = None) -> list[Array]:
        """Return the logits and the presents for ids [batch, sequence] after `past`, or from the start."""
        if past is None:
            dtype = np.float16 if "float16" in self._past[0].type else np.float32
            past = [np.zeros((len(ids), each.shape[1], 0, each.shape[3]), dtype) for each in self._past]
        before, total = past[0].shape[2], past[0].shape[2] + ids.shape[1]
        feeds = {each.name: value for each, value in zip(self._past, past, strict=True)}
        feeds["input_ids"] = ids
        feeds["attention_mask"] = np.ones((len(ids), total), np.int64)
        feeds["position_ids"] = np.arange(before, total)[None].repeat(len(ids), 0)
        return list(self._session.run(None, feeds))


def check(reference: LlamaForCausalLM, path: Path, ids: torch.Tensor) -> dict[str, float]:
    """Return the largest relative differences of logits for ids [batch, tokens].

    Measured are a prefill against the fp32 `reference` in torch, and a prefill of half followed by
    decoding token by token against the prefill of all; both are divided by the largest logit.

    Raises:
        AssertionError: a difference is beyond what the type explains.

    """
    run = Runtime(path)
    with torch.no_grad():
        expected = reference(input_ids=ids).logits.numpy()
    tokens = ids.numpy()
    whole = run(tokens)[0]
    half = tokens.shape[1] // 2
    first, *past = run(tokens[:, :half])
    parts = [first]
    for at in range(half, tokens.shape[1]):
        logits, *past = run(tokens[:, at : at + 1], past)
        parts.append(logits)
    stepwise = np.concatenate(parts, axis=1)
    scale = float(np.abs(expected).max())
    tolerance = 1e-2 if whole.dtype == np.float16 else 1e-4
    found = {
        "prefill": float(np.abs(whole - expected).max()) / scale,
        "decode": float(np.abs(stepwise.astype(np.float32) - whole).max()) / scale,
    }
    assert max(found.values()) < tolerance, found
    return found


def perplexity(path: Path, ids: Array, context: int) -> float:
    """Return exp of the mean negative log-likelihood of ids [tokens], as training.perplexity does."""
    run, total = Runtime(path), 0.0
    for at in range(0, len(ids) - 1, context - 1):
        window = ids[at : at + context][None]
        logits = run(window)[0][0, :-1].astype(np.float64)
        normal = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        total += float((normal - logits[np.arange(len(logits)), window[0, 1:]]).sum())
    return float(np.exp(total / (len(ids) - 1)))
