"""The main job on a bundled real model: tie, quantize, fit the shapes, and measure what it cost.

Run by `make demo`, or by hand with any other model: python examples/demo.py MODEL.onnx TEXT TOKENIZER.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from onnx_tailor import pipeline, recipe, verify
from onnx_tailor.console.measuring import measure
from onnx_tailor.progress import Silent
from onnx_tailor.reporting.build import build_page

HERE = Path(__file__).parent
RECIPES = ("tie", "rtn", "k-quant", "gptq", "k-quant-mixed", "k-quant-8bit")


def main(model: Path, text: Path, tokenizer: Path, out: Path) -> None:
    """Run each recipe on `model`, print one table of before and after, and write a page about all of them."""
    console = Console()
    tokens = verify.from_text(text, tokenizer)
    table = Table(title=f"{model.parent.name}/{model.name} on {text.name}")
    for heading in ("", "bytes", "bpw", "perplexity", "KL", "top-1", "s"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    measured = []
    for number, name in enumerate(RECIPES):
        report = pipeline.run(recipe.load(name), model, out / name, overwrite=True)
        measured += measure(model, [out / name / model.name], tokens, {}, Silent(), trace=True)
        result = measured[-1].comparison
        if number == 0:
            table.add_row(
                "before",
                f"{report.before.file_bytes:,}",
                f"{report.before.bits_per_weight:.2f}",
                f"{result.perplexity_reference:.2f}",
                "0",
                "1.000",
                "",
                end_section=True,
            )
        table.add_row(
            name,
            f"{report.after.file_bytes:,}",
            f"{report.after.bits_per_weight:.2f}",
            f"{result.perplexity_candidate:.2f}",
            f"{result.kl_mean:.4f}",
            f"{result.top1_agreement:.3f}",
            f"{report.seconds:.1f}",
        )
        changes = sum(len(p.changes) for p in report.passes)
        console.print(f"[bold]{name}[/]: {changes} change{'s' * (changes != 1)}, written to {out / name}")
    console.print(table)
    page = out / "report.html"
    build_page(page, model, [out / name / model.name for name in RECIPES], measured)
    console.print(f"charts, tables, the worst tokens in context: {page}")


if __name__ == "__main__":
    example = HERE / "tiny-llama"
    arguments = [Path(a) for a in sys.argv[1:]]
    if arguments and len(arguments) != 3:
        sys.exit("usage: demo.py [MODEL.onnx TEXT TOKENIZER.json]")
    chosen = arguments or [example / "model.onnx", example / "held-back.txt", example / "tokenizer.json"]
    main(chosen[0], chosen[1], chosen[2], Path("demo-out"))
