"""Arguments that commands share; loads nothing heavy, so that `--help` need not wait."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "LIMIT_HELP",
    "ClientName",
    "LimitOption",
    "ReportOption",
    "TargetName",
    "TextOption",
    "TokenizerOption",
    "TokensOption",
    "WindowOption",
    "WindowsOption",
]


class TargetName(StrEnum):
    """The targets, named here so that `--help` need not load them."""

    cpu = "cpu"
    cuda = "cuda"
    webgpu = "webgpu"
    wasm = "wasm"
    dml = "dml"
    portable = "portable"


class ClientName(StrEnum):
    """The libraries whose folders are laid out in their own way."""

    transformers_js = "transformers.js"


LIMIT_HELP = (
    "At most: kl (mean, nats), kl99, klmax (99th percentile and largest), perplexity (over the reference's), "
    "decode (against prefill), output (largest difference over largest value). "
    "At least: top1, top5 (agreement, 0 to 1), greedy (mean tokens until greedy texts part)."
)
"""Names every figure of `verify.limits`, which is too heavy to load for a help text."""

TokensOption = Annotated[Path | None, typer.Option(help="Token ids, a .npy file of integers.")]
TextOption = Annotated[
    Path | None, typer.Option(help="A text in UTF-8, or `bundled` for the passage that comes with onnx-tailor.")
]
TokenizerOption = Annotated[
    Path | None, typer.Option(help="The text's tokenizer.json; by default the one beside the model to compare with.")
]
WindowOption = Annotated[
    int | None, typer.Option(help="Tokens of each window, run on its own; by default 256, of random ones 64.", min=2)
]
WindowsOption = Annotated[int | None, typer.Option(help="Take no more windows than this.", min=1)]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help=f"Exit 1 beyond this value; may be repeated. {LIMIT_HELP}"),
]
ReportOption = Annotated[
    Path | None, typer.Option(help="Also write an HTML page with charts to this file; it needs no network.")
]
