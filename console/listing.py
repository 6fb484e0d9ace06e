"""The lists that `passes` and `recipes` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnx_tailor import recipes
from onnx_tailor.console import options
from onnx_tailor.passes import PASSES

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Pass

__all__ = ["pass_json", "show_pass", "show_passes", "show_recipes"]


def show_passes() -> None:
    """Print every pass with its first sentence."""
    console = Console()
    _show_pairs(console, [(name, options.summary(cls)) for name, cls in PASSES.items()])


def show_recipes() -> None:
    """Print every shipped recipe with its first line."""
    console = Console()
    _show_pairs(console, [(name, recipes.summary(name)) for name in recipes.names()])


def show_pass(cls: type[Pass]) -> None:
    """Print a pass's description and options."""
    console = Console()
    console.print(Text(cls.name, style="bold"))
    console.print(Text(options.description(cls)), soft_wrap=True)
    console.print()
    if not options.options(cls):
        console.print("It has no options.")
    _show_options(console, cls)
    for inner in options.nested(cls):
        keys = ", ".join(option.name for option in options.options(inner))
        console.print(Text(f"\nkeys of {{{keys}}}", style="bold"))
        _show_options(console, inner)


def pass_json(cls: type[Pass]) -> dict[str, Any]:
    """Return what `passes NAME --json` prints."""
    return {
        "name": cls.name,
        "summary": options.summary(cls),
        "description": options.description(cls),
        "options": [vars(option) for option in options.options(cls)],
    }


def _show_options(console: Console, cls: type[Any]) -> None:
    """Print each option with its values, its default and its help below."""
    for option in options.options(cls):
        default = "required" if option.default is None else f"default {option.default}"
        line = Text.assemble((f"  {option.name}", "cyan"), f": {option.values}  ({default})")
        console.print(line, soft_wrap=True)
        console.print(Padding(Text(option.help), (0, 0, 0, 6)))


def _show_pairs(console: Console, pairs: list[tuple[str, str]]) -> None:
    """Print names and sentences in two columns."""
    table = Table.grid(padding=(0, 2))
    for name, sentence in pairs:
        table.add_row(Text(name, style="cyan", no_wrap=True), Text(sentence))
    console.print(table)
