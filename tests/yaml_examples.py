"""Recipes, right and wrong, that both the loader and the schema are asked about."""

from __future__ import annotations

ANY_PASS = "recipe: 1\npasses:\n"

GOOD = (
    ANY_PASS + "  - quantize",
    ANY_PASS + "  - quantize:",
    "recipe: 1\ntarget: cuda\npasses: [tie-embeddings: {required: true}, reshape-dim: {layout: shared}]",
    "recipe: 1\ntarget:\npasses: [tie-embeddings]",
    ANY_PASS
    + "  - quantize: {bits: float, accuracy_level: 4, nodes: {'role:lm_head': 4, 'a*': skip, b: {symmetric: true}}}",
    ANY_PASS + "  - quantize: {nodes: {a: {bits: 8, block_size: 16, layers: '0-2,5', method: rtn}}}",
    ANY_PASS + "  - graphsurgeon: {function: 'a.b:c'}",
)

REFUSED = (
    "",
    "- quantize",
    "{}",
    "recipe: [1",
    "recipe: 2\npasses: [quantize]",
    "recipe: true\npasses: [quantize]",
    "recipe: 1\npass: []\npasses: [quantize]",
    "recipe: 1\ntarget: CUDAA\npasses: [quantize]",
    "recipe: 1\nrecipe: 1",
    "recipe: 1\npasses: !!python/object/apply:os.getcwd []",
    "recipe: 1\npasses:",
    "recipe: 1\npasses: []",
    "recipe: 1\npasses: quantize",
    ANY_PASS + "  - 3",
    ANY_PASS + "  - quantise",
    ANY_PASS + "  - quantize: 4",
    ANY_PASS + "  - quantize:\n    bits: 4",
    ANY_PASS + "  - quantize: {blocksize: 32}",
    ANY_PASS + "  - quantize: {method: kquant}",
    ANY_PASS + "  - quantize: {bits: 5}",
    ANY_PASS + "  - quantize: {bits: '4'}",
    ANY_PASS + "  - quantize: {bits: true}",
    ANY_PASS + "  - quantize: {block_size: 32.0}",
    ANY_PASS + "  - quantize: {block_size: 48}",
    ANY_PASS + "  - quantize: {block_size: 512}",
    ANY_PASS + "  - quantize: {symmetric: yes please}",
    ANY_PASS + "  - quantize: {symmetric: 1}",
    ANY_PASS + "  - quantize: {accuracy_level: 5}",
    ANY_PASS + "  - quantize: {nodes: [a]}",
    ANY_PASS + "  - quantize: {nodes: {a: 5}}",
    ANY_PASS + "  - quantize: {nodes: {a: {bits: 5}}}",
    ANY_PASS + "  - quantize: {nodes: {a: {bts: 4}}}",
    ANY_PASS + "  - quantize: {nodes: {a: {block_size: 24}}}",
    ANY_PASS + "  - quantize: {nodes: {a: {layers: 3}}}",
    ANY_PASS + "  - quantize: {nodes: {a: {layers: '3-1'}}}",
    ANY_PASS + "  - quantize: {nodes: {a: }}",
    ANY_PASS + "  - reshape-dim: {layout: flat}",
    ANY_PASS + "  - graphsurgeon",
    ANY_PASS + "  - graphsurgeon: {function: 3}",
)
