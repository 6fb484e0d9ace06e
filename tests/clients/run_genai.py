"""Runs in the environment of genai.txt: load GenAI folders and print, as JSON, what each generates greedily.

Takes one JSON object: folders, prompt (token ids), new_tokens.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og


def main() -> None:
    asked = json.loads(sys.argv[1])
    print(json.dumps([generate(folder, asked["prompt"], asked["new_tokens"]) for folder in asked["folders"]]))


def generate(folder: str, prompt: list[int], count: int) -> dict[str, Any]:
    """Return the logits after each token of the prompt, and the tokens behind it."""
    versions = {"onnxruntime-genai": og.__version__, "onnxruntime": ort.__version__}
    try:
        model = og.Model(folder)
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=len(prompt) + count)
        generator = og.Generator(model, parameters)
        logits = []
        for token in prompt:
            generator.append_tokens(np.array([token], np.int32))
            logits.append(np.asarray(generator.get_logits()).reshape(-1).tolist())
        tokens = []
        while len(tokens) < count and not generator.is_done():
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
    except Exception as error:  # what a stranger's runtime says is the result
        return {"error": str(error), **versions}
    return {"tokens": tokens, "logits": logits, **versions}


if __name__ == "__main__":
    main()
