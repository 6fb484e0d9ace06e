"""Lines of plain text on a console."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print a line in which brackets are brackets."""
    console.print(Text(line, style=style), highlight=False, soft_wrap=True)
