"""Change the lines and the characters of a recipe."""

from __future__ import annotations

import random

PIECES = [
    "recipe: 1",
    "passes:",
    "- quantize:",
    "nodes:",
    "{bits: 8}",
    "&a",
    "*a",
    "!!python/object:os.system",
    "<<: *a",
    "[",
    "]",
    "{",
    "}",
    "? ",
    "|",
    ">",
    "'",
    '"',
    "---",
    "...",
    "%YAML 1.1",
    "\t",
    "\x00",
    "\ufeff",
    "\u2028",
    "~",
    "true",
    "1e999",
    "0x1",
    "2024-01-01",
    "role:lm_head",
    "*: 4",
    "layers: 0-999999999999",
    "bits: 99999999999999",
    "block_size: 1e9",
    "[[[[[[[[",
    "{a: {a: {a: ",
    "target: cpu",
    "method: k_quant",
    "- tie-embeddings",
]


def mutated(dice: random.Random) -> bytes:
    """Return a shipped recipe with lines and characters changed."""
    from onnx_tailor import recipes

    lines = recipes.path(dice.choice(recipes.names())).read_text(encoding="utf-8").split("\n")
    for _ in range(dice.choice([1, 2, 4, 8])):
        at = dice.randrange(len(lines))
        indent = " " * dice.choice([0, 2, 4, 6, 8, 10])
        match dice.randrange(5):
            case 0:
                lines[at] = indent + dice.choice(PIECES)
            case 1:
                lines.insert(at, indent + " ".join(dice.choice(PIECES) for _ in range(3)))
            case 2:
                lines[at] = lines[at][: dice.randrange(len(lines[at]) + 1)] + dice.choice(PIECES)
            case 3:
                lines[at] = lines[at].lstrip() if dice.random() < 0.5 else indent + lines[at]
            case _:
                lines = (lines + lines[at:] * dice.choice([1, 2, 50]))[:100_000]
    text = "\n".join(lines)
    return text.encode() if dice.random() < 0.95 else text.encode("utf-16")
