"""Recipes: each text stands beside what is said about it."""

from __future__ import annotations

import re
import sys
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from onnx_tailor import recipes
from onnx_tailor.errors import OptionError, UsageError
from onnx_tailor.passes import PASSES
from onnx_tailor.recipe import Recipe, explain, load, parse

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, text: str) -> str:
    path = folder / "r.yaml"
    path.write_text(dedent(text), encoding="utf-8")
    return str(path)


def options(recipe: Recipe, step: int = 0) -> dict[str, object]:
    return vars(recipe.steps[step].pass_)


GOOD = """\
    recipe: 1
    target: cuda
    passes:
      - tie-embeddings: {required: true}
      - quantize:
          method: k_quant
          bits: 4
          block_size: 64
          nodes:
            "/lm_head/MatMul": 8
            "*/mlp/down_proj/*": {bits: 8, layers: "0-2,15-17"}
            "role:router": skip
      - reshape-dim
    """

ANY_PASS = "recipe: 1\npasses:\n"
REFUSED = [
    ("", ["1:1: the recipe is empty; it needs the keys recipe and passes"]),
    ("- quantize", ["1:1: the recipe is not a mapping; it needs the keys recipe and passes"]),
    (
        "{}",
        [
            "1:1: the recipe lacks the key 'recipe', as in recipe: 1",
            "1:1: the recipe lacks the key 'passes', a list of passes",
        ],
    ),
    ("recipe: [1", ["1:11: this is not YAML: while parsing a flow sequence, expected ',' or ']'*"]),
    ("recipe: 2\npasses: [quantize]", ["1:9: recipe is 2; this onnx-tailor reads recipe: 1"]),
    ("recipe: true\npasses: [quantize]", ["1:9: recipe is true; this onnx-tailor reads recipe: 1"]),
    ("recipe: 1\npass: []\npasses: [quantize]", ["2:1: a recipe has no key 'pass'; did you mean passes?"]),
    (
        "recipe: 1\ntarget: CUDAA\npasses: [quantize]",
        ["2:9: target is 'CUDAA'; it must be cpu, cuda, *; did you mean cuda?"],
    ),
    ("recipe: 1\nrecipe: 1", ["2:1: the key 'recipe' is given twice; line 1 has it already"]),
    ("recipe: 1\n1: 2", ["2:1: the key 1 is not text; put it in quotes"]),
    (
        "recipe: 1\npasses: !!python/object/apply:os.getcwd []",
        ["2:9: the YAML type 'python/object/apply:os.getcwd' is not allowed; a recipe holds *"],
    ),
    ("recipe: 1\npasses: &a [*a]", ["2:9: the file holds too many or too deeply nested values for a recipe"]),
    ("[" * 5000, ["1:1: the values are nested too deeply"]),
    ("recipe: 1\npasses:", ["2:1: passes is null; it must be a list of at least one pass"]),
    (ANY_PASS + "  - 3", ["3:5: this item of passes is 3; it must be the name of a pass"]),
    (ANY_PASS + "  - quantise", ["3:5: no pass is called 'quantise'; did you mean quantize?"]),
    (ANY_PASS + "  - xyzzy", ["3:5: no pass is called 'xyzzy'; the passes are *quantize*"]),
    (ANY_PASS + "  - quantize: 4", ["3:15: the options of quantize are 4; they must be a mapping"]),
    (
        ANY_PASS + "  - quantize:\n    bits: 4",
        ["3:5: this item of passes is several passes; indent the options below the pass's name, *"],
    ),
    (
        ANY_PASS + "  - quantize: {blocksize: 32}",
        ["3:16: quantize has no option 'blocksize'; did you mean block_size?"],
    ),
    (
        ANY_PASS + "  - quantize: {method: kquant}",
        ["3:24: quantize.method is 'kquant'; it must be rtn, k_quant, *; did you mean k_quant?"],
    ),
    (ANY_PASS + "  - quantize: {bits: 5}", ["3:22: quantize.bits is 5; it must be 2, 4, 8, float or auto"]),
    (
        ANY_PASS + "  - quantize: {bits: '4'}",
        ["3:22: quantize.bits is '4'; it must be 2, 4, 8, float or auto; did you mean 4?"],
    ),
    (
        ANY_PASS + "  - quantize: {block_size: 32.0}",
        ["3:28: quantize.block_size is 32.0; it must be a whole number or auto"],
    ),
    (
        ANY_PASS + "  - quantize: {symmetric: yes}",
        ["3:27: quantize.symmetric is 'yes'; it must be true or false; did you mean true?"],
    ),
    (ANY_PASS + "  - quantize: {nodes: [a]}", ['3:23: quantize.nodes is ["a"]; it must be a mapping']),
    (
        ANY_PASS + "  - quantize:\n      nodes:\n        a: 5\n        b*: {bits: 5}\n        c: {bts: 4}\n        d:",
        [
            "5:12: quantize.nodes.a is 5; it must be 2, 4, 8, float or skip",
            "6:20: quantize.nodes.'b*'.bits is 5; it must be 2, 4, 8, float or skip",
            "7:13: quantize.nodes.c has no option 'bts'; did you mean bits?",
            "8:9: quantize.nodes.d is null; it must be 2, 4, 8, float or skip",
        ],
    ),
    (ANY_PASS + "  - graphsurgeon", ["3:5: graphsurgeon needs the option 'function'"]),
    (ANY_PASS + "  - quantize: {block_size: 48}", ["3:28: quantize: *48*"]),
    (ANY_PASS + "  - quantize: {block_size: 8}", ["3:28: quantize: *8*"]),
    (
        "recipe: 3\npasses:\n  - quantize: {bits: 3, block_size: 48}\n  - ty\n  - quantize: {block_size: 24}",
        [
            "1:9: recipe is 3*",
            "3:22: quantize.bits is 3*",
            "4:5: no pass is called 'ty'*",
            "5:28: quantize: *24*",
        ],
    ),
]


def matches(expected: str, line: str) -> bool:
    """Compare with a text in which * stands for anything."""
    return re.fullmatch(re.escape(expected).replace(r"\*", ".*"), line) is not None


def test_reads_a_recipe(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, GOOD))
    assert (recipe.name, recipe.target) == ("r", "cuda")
    assert [type(step.pass_) for step in recipe.steps] == [
        PASSES[name] for name in ("tie-embeddings", "quantize", "reshape-dim")
    ]
    assert options(recipe)["required"] is True
    quantize = options(recipe, 1)
    assert (quantize["method"], quantize["bits"], quantize["block_size"]) == ("k_quant", 4, 64)
    assert quantize["symmetric"] is False
    nodes = quantize["nodes"]
    assert isinstance(nodes, dict)
    assert list(nodes) == ["/lm_head/MatMul", "*/mlp/down_proj/*", "role:router"]
    assert (nodes["/lm_head/MatMul"], nodes["role:router"]) == (8, "skip")
    assert nodes["*/mlp/down_proj/*"].bits == 8


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_refuses_with_place_value_and_advice(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(expected), lines
    for line, wanted in zip(lines, expected, strict=True):
        assert matches(f"{path}:{wanted}", line), line


@pytest.mark.parametrize(
    "text",
    ["".join(f"k{i}: 1\n" for i in range(20_000)), "[" * 900_000, "{a: " * 200_000],
    ids=["keys", "lists", "mappings"],
)
def test_a_large_text_is_refused_before_it_is_parsed_whole(text: str) -> None:
    """Parsed whole, some of these take minutes; the parser's steps are few before they are refused."""
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += event == "call"

    sys.setprofile(count)
    try:
        with pytest.raises(UsageError, match=r"too many or too deeply nested"):
            parse(text, "r.yaml")
    finally:
        sys.setprofile(None)
    assert steps < 6_000_000


def test_messages_are_no_longer_than_a_screen() -> None:
    for text in ("a: 1" + "0" * 60_000, "a: &a {x: 1}\n" + "b: {<<: *a}\n" * 4_000, f"recipe: 1\n{'k' * 60_000}: 2"):
        with pytest.raises(UsageError) as caught:
            parse(text, "r.yaml")
        assert len(str(caught.value)) < 60 * 1100
        assert str(caught.value).count("\n") <= 51


def test_aliases_cannot_multiply(tmp_path: Path) -> None:
    levels = [f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    text = "recipe: 1\npasses:\n" + "".join(f"- {level}\n" for level in ["&a0 [x]", *levels])
    with pytest.raises(UsageError, match="too many"):
        load(write(tmp_path, text))


def test_an_anchor_may_repeat_options(tmp_path: Path) -> None:
    text = ANY_PASS + "  - quantize: &four {bits: 8}\n  - quantize: *four\n"
    recipe = load(write(tmp_path, text))
    assert [options(recipe, step)["bits"] for step in (0, 1)] == [8, 8]


@pytest.mark.parametrize(
    ("settings", "option", "value"),
    [
        (["quantize.bits=8"], "bits", 8),
        (["quantize.bits=8", "quantize.bits=2"], "bits", 2),
        (["quantize.method=k_quant"], "method", "k_quant"),
        (["quantize.nodes.model.layers.0=skip"], "nodes", {"model.layers.0": "skip", "a": 8, "b": 4}),
        (["quantize.nodes.b=2", "quantize.nodes.c=4"], "nodes", {"c": 4, "b": 2, "a": 8}),
        (["quantize.nodes={x: float}"], "nodes", {"x": "float"}),
    ],
)
def test_settings_replace_options(tmp_path: Path, settings: list[str], option: str, value: object) -> None:
    path = write(tmp_path, ANY_PASS + "  - quantize: {nodes: {a: 8, b: 4}}")
    found = options(load(path, settings=settings))[option]
    assert found == value
    if isinstance(found, dict) and isinstance(value, dict):
        assert list(found) == list(value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["bits=4"], "--set:1:1: 'bits=4' is no PASS.KEY=VALUE, as in quantize.bits=8"),
        (["quantize.bits"], "--set:1:1: 'quantize.bits' is no PASS.KEY=VALUE, as in quantize.bits=8"),
        (["quantise.bits=4"], "--set:1:1: the recipe has no pass 'quantise'; did you mean quantize?"),
        (["reshape-dim.layout=auto"], "--set:1:1: the recipe has 2 passes 'reshape-dim'; *"),
        (
            ["quantize.bits=4", "quantize.bits=5"],
            "--set:2:15: quantize.bits is 5; it must be 2, 4, 8, float or auto",
        ),
        (["quantize.bit=4"], "--set:1:10: quantize has no option 'bit'; did you mean bits?"),
        (["quantize.nodes.lm={bits: 5}"], "--set:1:26: quantize.nodes.lm.bits is 5; it must be *"),
        (["quantize.bits=["], "--set:1:16: this is not YAML: *"),
    ],
)
def test_refuses_a_setting(tmp_path: Path, settings: list[str], expected: str) -> None:
    path = write(tmp_path, ANY_PASS + "  - quantize\n  - reshape-dim\n  - reshape-dim\n")
    with pytest.raises(UsageError) as caught:
        load(path, settings=settings)
    assert matches(expected, str(caught.value))


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (("block_size",), "8:19"),
        (("nodes", "*/mlp/down_proj/*"), "11:9"),
        (("nodes", "*/mlp/down_proj/*", "layers"), "11:48"),
        (("nodes", "*/mlp/down_proj/*", "bits", 3), "11:37"),
        (("nodes", "not there"), "10:9"),
        (("symmetric",), "5:5"),
        ((), "5:5"),
    ],
)
def test_explain_finds_the_place_of_an_option(tmp_path: Path, key: tuple[str | int, ...], place: str) -> None:
    path = write(tmp_path, GOOD)
    error = explain(OptionError("it matches nothing", key=key), load(path).steps[1])
    assert str(error) == f"{path}:{place}: quantize: it matches nothing"
    assert error.exit_status == 2


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipes_are_right_and_say_what_they_do(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert recipe.steps
    assert recipes.summary(name).endswith(".")
    assert len(recipes.summary(name)) < 100


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("k-quent", "no recipe is called 'k-quent', and there is no such file; did you mean k-quant?"),
        ("xyzzy", "no recipe is called 'xyzzy', and there is no such file; the shipped ones are *k-quant,*"),
        ("nothing.yaml", "the recipe nothing.yaml does not exist; give a YAML file or one of *"),
        (".", "the recipe . is a folder, not a recipe; give a YAML file or one of *"),
    ],
)
def test_names_that_are_no_recipe(reference: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(reference)
    assert matches(expected, str(caught.value))


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    binary = tmp_path / "model.onnx"
    binary.write_bytes(b"\x08\x07\xff\xfe")
    with pytest.raises(UsageError, match=r"model\.onnx is not text in UTF-8"):
        load(str(binary))
    binary.write_bytes(bytes(2 << 20))
    with pytest.raises(UsageError, match="is too large for a recipe; the recipe comes before the model"):
        load(str(binary))
