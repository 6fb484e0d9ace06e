"""The JSON Schema of a recipe (draft 2020-12), made from the passes' own dataclasses, for editors and for checks."""

from __future__ import annotations

from collections.abc import Mapping
from types import GenericAlias
from typing import Any, cast

from pydantic import ConfigDict, TypeAdapter

from onnx_tailor.console.options import description, nested, options, summary
from onnx_tailor.passes import PASSES
from onnx_tailor.passes.base import Pass
from onnx_tailor.recipe import VERSION
from onnx_tailor.targets import TARGETS

__all__ = ["schema"]

_BLOCK_SIZES = [16, 32, 64, 128, 256]
_EXAMPLE = {
    "recipe": VERSION,
    "passes": ["tie-embeddings", {"quantize": {"bits": 4, "nodes": {"role:lm_head": 8}}}, "reshape-dim"],
}


def schema(registry: Mapping[str, type[Pass]] = PASSES) -> dict[str, Any]:
    """Return the schema. What only the model can tell (whether a pattern matches) is beyond it."""
    definitions: dict[str, Any] = {}
    items = [form for name, cls in registry.items() for form in _forms(name, cls, definitions)]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnx-tailor recipe",
        "description": "The passes to run over an ONNX model, in order.",
        "type": "object",
        "properties": {
            "recipe": {"const": VERSION, "description": "The version of this format."},
            "target": {
                "description": "What will run the model; decides the layout of quantized tables.",
                "oneOf": [
                    *({"const": name, "description": target.summary} for name, target in TARGETS.items()),
                    {"type": "null"},
                ],
            },
            "passes": {
                "type": "array",
                "minItems": 1,
                "items": {"anyOf": items},
                "description": "Each item is a pass's name, or a mapping of the name to its options.",
            },
        },
        "required": ["recipe", "passes"],
        "additionalProperties": False,
        "examples": [_EXAMPLE],
        "$defs": definitions,
    }


def _forms(name: str, cls: type[Pass], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the forms of one pass as an item of `passes`, adding the schemas of its options to `definitions`."""
    # The configuration is the loader's own: see option_errors.build.
    config = ConfigDict(extra="forbid", strict=True)
    holder: Any = GenericAlias(tuple, (cls,))
    found = TypeAdapter(holder, config=config).json_schema(ref_template="#/$defs/{model}")
    inner = cast("dict[str, Any]", found["$defs"])
    for owner in (cls, *nested(cls)):
        _describe(inner[owner.__name__], owner)
    inner[cls.__name__]["description"] = description(cls)
    definitions |= inner
    bodies: list[dict[str, Any]] = [{"$ref": f"#/$defs/{cls.__name__}"}]
    forms: list[dict[str, Any]] = [
        {
            "type": "object",
            "properties": {name: {"anyOf": bodies}},
            "required": [name],
            "additionalProperties": False,
            "description": summary(cls),
        }
    ]
    if not inner[cls.__name__].get("required"):
        bodies.append({"type": "null"})
        forms.append({"const": name, "description": summary(cls)})
    return forms


def _describe(definition: dict[str, Any], owner: type[Any]) -> None:
    """Put the help texts of the options into their schemas, and the rule on block sizes, which no type states."""
    definition["additionalProperties"] = False  # pydantic before 2.14 does not apply `extra` to dataclasses here
    properties = definition.get("properties", {})
    for option in options(owner):
        properties[option.name]["description"] = option.help
        properties[option.name].pop("title", None)
    if "block_size" in properties:
        for part in (properties["block_size"], *properties["block_size"].get("anyOf", [])):
            if part.get("type") == "integer":
                part.pop("type")
                part["enum"] = _BLOCK_SIZES
