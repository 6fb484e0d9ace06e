"""The schema and the loader agree on what is a recipe, as far as a schema can tell."""

from __future__ import annotations

import json
from contextlib import suppress
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
import yaml_examples
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from typer.testing import CliRunner

from onnx_tailor import recipes
from onnx_tailor.cli import app
from onnx_tailor.console.schema import schema
from onnx_tailor.errors import UsageError
from onnx_tailor.passes import PASSES
from onnx_tailor.recipe import load

if TYPE_CHECKING:
    from pathlib import Path

VALIDATOR = Draft202012Validator(schema())
BEYOND_A_SCHEMA = {
    ": 32.0}",  # JSON knows one kind of number
    "!!python",  # tags are YAML's alone
    "recipe: 1\nrecipe: 1",  # as are repeated keys
    "layers:",  # a list of layers inside a text
}


def accepted(text: str) -> bool:
    return VALIDATOR.is_valid(YAML(typ="safe", pure=True).load(text))


def test_it_is_a_schema_of_the_draft_that_it_names() -> None:
    Draft202012Validator.check_schema(schema())
    assert VALIDATOR.is_valid(schema()["examples"][0])


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipes_fit_and_name_it(name: str) -> None:
    text = recipes.path(name).read_text(encoding="utf-8")
    assert accepted(text)
    assert text.splitlines()[1] == "# yaml-language-server: $schema=recipe.schema.json"


@pytest.mark.parametrize("text", yaml_examples.GOOD)
def test_both_accept(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(dedent(text), encoding="utf-8")
    load(str(path))
    assert accepted(dedent(text))


@pytest.mark.parametrize("text", yaml_examples.REFUSED)
def test_both_refuse(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        load(str(path))
    if any(part in text for part in BEYOND_A_SCHEMA):
        return
    with suppress(YAMLError):  # no editor gets as far as the schema
        assert not accepted(text)


@pytest.mark.parametrize("name", PASSES)
def test_every_option_has_its_description(name: str) -> None:
    definition: dict[str, Any] = schema()["$defs"][PASSES[name].__name__]
    assert definition["description"]
    assert all(option["description"] for option in definition["properties"].values())


def test_the_command_prints_it() -> None:
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == schema()
