"""Runs in the environment of optimum.txt: load folders with optimum and print, as JSON, what each generates greedily.

Takes one JSON object: folders, prompt (token ids), new_tokens, and task (CausalLM or Seq2SeqLM).
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM

_CLASSES = {"CausalLM": ORTModelForCausalLM, "Seq2SeqLM": ORTModelForSeq2SeqLM}


def main() -> None:
    asked = json.loads(sys.argv[1])
    print(json.dumps([generate(folder, asked) for folder in asked["folders"]]))


def generate(folder: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens behind the prompt and the logits that chose them."""
    versions = {name: version(name) for name in ("optimum-onnx", "optimum", "transformers", "onnxruntime")}
    try:
        model = _CLASSES[asked["task"]].from_pretrained(folder)
        ids = torch.tensor([asked["prompt"]])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=asked["new_tokens"],
            min_new_tokens=asked["new_tokens"],
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
    except Exception as error:  # what a stranger's library says is the result
        return {"error": str(error), **versions}
    logits = [each[0].tolist() for each in found.logits]
    return {"tokens": found.sequences[0].tolist(), "logits": logits, **versions}


if __name__ == "__main__":
    main()
