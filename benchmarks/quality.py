"""Run every shipped recipe on one model and print what each costs in quality against the original."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from onnx_tailor import recipes
from onnx_tailor.errors import TailorError
from onnx_tailor.verify import compare, from_text


def main() -> None:
    """Print the table, or JSON with --json. A recipe that does not fit the model is a line that says so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--limit", type=int, default=16, help="windows of the text")
    parser.add_argument("--recipes", nargs="*", default=_shipped())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tokens = from_text(options.text, options.tokenizer, options.window, limit=options.limit)
    rows = []
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory(prefix="onnx-tailor-quality-") as scratch:
            out = Path(scratch) / "out"
            row = {"recipe": recipe} | _run(recipe, options.model, out)
            if "error" not in row:
                try:
                    row |= compare(options.model, out / options.model.name, tokens).to_json()
                except TailorError as error:
                    row["error"] = str(error)
            rows.append(row)
        if not options.json:
            _print(row, header=len(rows) == 1)
    if options.json:
        print(json.dumps(rows))


def _shipped() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(file.stem for folder in recipes.__path__ for file in Path(folder).glob("*.yaml"))


def _run(recipe: str, model: Path, out: Path) -> dict[str, Any]:
    """Run the recipe as a user would; return the sizes of its report, or the error."""
    command = [sys.executable, "-m", "onnx_tailor", "run", recipe, str(model), "-o", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    report = json.loads(done.stdout)
    return {"before": report["before"], "after": report["after"]}


def _print(row: dict[str, Any], *, header: bool) -> None:
    """Print one line of the table, and the line of the original above the first."""
    if header:
        print(f"{'':24}{'MB':>9}{'bpw':>7}{'perplexity':>12}{'KL':>10}{'top-1':>8}")
    if "error" in row:
        print(f"{row['recipe']:24}  {row['error']}")
        return
    if header:
        size = row["before"]
        print(
            f"{'(original)':24}{size['file_bytes'] / 1e6:9.1f}{size['bits_per_weight']:7.2f}"
            f"{float(row['perplexity_reference']):12.3f}"
        )
    size = row["after"]
    print(
        f"{row['recipe']:24}{size['file_bytes'] / 1e6:9.1f}{size['bits_per_weight']:7.2f}"
        f"{float(row['perplexity_candidate']):12.3f}{float(row['kl_mean']):10.5f}"
        f"{float(row['top1_agreement']):8.4f}"
    )


if __name__ == "__main__":
    main()
