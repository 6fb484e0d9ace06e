"""Write the reference pages of the site from the program's own texts, so that they cannot fall behind it.

Run by `make docs`; the pages are not in the repository.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onnx_tailor import api, cli, testing
from onnx_tailor.console.options import description, nested, options
from onnx_tailor.passes import OWN

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parents[1] / "reference"
STATUS = (
    "Exit status: 0 done; 1 the model cannot be rewritten as asked, `verify` found a limit exceeded, `lint` a problem, "
    "or `check` a difference; 2 wrong usage or recipe."
)


def commands() -> Iterator[str]:
    """Yield the page of commands."""
    yield f"# Commands\n\n{STATUS}"
    group: Any = typer.main.get_command(cli.app)
    context = typer.Context(group, info_name="onnx-tailor")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = typer.Context(command, info_name=f"onnx-tailor {name}")
        yield f"\n## {name}\n\n{command.help}\n\n```\n{command.get_usage(inner)}\n```\n"
        yield "| argument or option | what it says |\n| --- | --- |"
        for parameter in command.get_params(inner):
            record = parameter.get_help_record(inner) or (parameter.human_readable_name, parameter.help or "")
            yield "| `{}` | {} |".format(*(text.replace("|", "/") for text in record))


def pass_options() -> Iterator[str]:
    """Yield the page of the passes' options."""
    yield "# Options of the passes"
    for name, cls in OWN.items():
        first, _, rest = description(cls).partition("\n")
        yield f"\n## {name}\n\n{first}\n"
        if rest.strip():
            yield f"```text\n{inspect.cleandoc(rest)}\n```\n"
        for owner in (cls, *nested(cls)):
            known = list(options(owner))
            if not known:
                yield "No options."
                continue
            if owner is not cls:
                yield "\nThe keys of a mapping among these values:\n"
            yield "| option | values | default | what it does |\n| --- | --- | --- | --- |"
            for option in known:
                values, default = option.values.replace("|", "/"), option.default or "must be given"
                yield f"| `{option.name}` | {values} | {default} | {option.help} |"


def python() -> Iterator[str]:
    """Yield the page of the Python interface."""
    yield "# Python"
    for module in (api, testing):
        yield f"\n## {module.__name__}\n\n```text\n{inspect.getdoc(module)}\n```"
        for name in module.__all__:
            function = getattr(module, name)
            yield f"\n### {name}\n\n```text\n{name}{inspect.signature(function)}\n\n{inspect.getdoc(function)}\n```"


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, lines in (("commands", commands()), ("options", pass_options()), ("python", python())):
        (FOLDER / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
