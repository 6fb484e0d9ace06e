"""Run recipes on one model and print what each costs in quality against the original, on several texts."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_tailor import recipes
from onnx_tailor.errors import TailorError
from onnx_tailor.verify import Tokens, from_npy, from_text
from onnx_tailor.verify.metrics import LogitSums, logit_sums
from onnx_tailor.verify.session import LanguageModel

WITH_DATA = ("imatrix", "gptq", "gptaq", "best")
"""Words in a row that make it need a calibration."""


@dataclass(frozen=True)
class Reference:
    """The original's logits, on disk: a vocabulary is large, and every row needs them."""

    texts: dict[str, Tokens]
    logits: dict[str, npt.NDArray[np.float32]]
    """[windows, length, V] by text."""

    def sums(self, model: Path) -> dict[str, LogitSums]:
        """Run a model on every text."""
        runner = LanguageModel(model)
        assert runner.logits is not None
        found = {}
        for name, tokens in self.texts.items():
            total = LogitSums()
            for window, logits in zip(tokens.windows, self.logits[name], strict=True):
                total += logit_sums(logits, runner.prefill(window[None])[runner.logits][0], window)
            found[name] = total
        return found


@contextmanager
def measured(model: Path, texts: dict[str, Tokens]) -> Iterator[Reference]:
    """Give the logits of the original, for as long as the block lasts."""
    runner = LanguageModel(model)
    assert runner.logits is not None, "the model yields no logits"
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-logits-") as folder:
        kept = {}
        for name, tokens in texts.items():
            shape = (*tokens.windows.shape, runner.vocabulary_size)
            kept[name] = np.lib.format.open_memmap(Path(folder) / f"{len(kept)}.npy", "w+", np.float32, shape)
            for number, window in enumerate(tokens.windows):
                kept[name][number] = runner.prefill(window[None])[runner.logits][0]
        del runner
        yield Reference(texts, kept)


def main() -> None:
    """Print a table in Markdown, or JSON with --json. A recipe that does not fit the model is a line that says so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="texts, or .npy files of token windows")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--limit", type=int, default=4, help="windows of each text, spread over it")
    parser.add_argument(
        "--rows",
        nargs="*",
        default=list(recipes.names()),
        help='recipes, each with settings: "k-quant quantize.bits=8"',
    )
    parser.add_argument("--calibration", type=Path, help="for the rows that look at data")
    parser.add_argument("--other", type=Path, nargs="*", default=[], help="models that other tools made")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    texts = {text.stem: _tokens(text, options) for text in options.text}
    rows: list[dict[str, Any]] = []
    with measured(options.model, texts) as reference:
        for row in options.rows:
            with tempfile.TemporaryDirectory(prefix="onnx-tailor-quality-") as scratch:
                rows.append(_row(row, options, Path(scratch) / "out", reference))
            if not options.json:
                _print(rows[-1], header=len(rows) == 1)
        for model in options.other:
            rows.append({"row": str(model), **_figures(reference, model)})
            if not options.json:
                _print(rows[-1], header=len(rows) == 1)
    if options.json:
        print(json.dumps(rows))


def _tokens(text: Path, options: argparse.Namespace) -> Tokens:
    if text.suffix == ".npy":
        return from_npy(text, options.window, limit=options.limit)
    found = from_text(text, options.tokenizer or options.model.parent / "tokenizer.json", options.window)
    step = max(1, len(found.windows) // options.limit)
    return Tokens(found.windows[::step][: options.limit], found.source)


def _row(row: str, options: argparse.Namespace, out: Path, reference: Reference) -> dict[str, Any]:
    """Run a recipe as a user would and measure the result; return its sizes and figures, or the error."""
    recipe, *settings = shlex.split(row)
    if options.calibration and any(word in row for word in WITH_DATA):
        settings.append(f"quantize.calibration={options.calibration}")
    command = [sys.executable, "-m", "onnx_tailor", "run", recipe, str(options.model), "-o", str(out), "--json"]
    command += [part for setting in settings for part in ("--set", setting)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"row": row, "error": lines[-1] if lines else f"exit status {done.returncode}"}
    size = json.loads(done.stdout)["after"]
    seconds = round(time.monotonic() - started, 1)
    return {"row": row, "seconds": seconds, **size, **_figures(reference, out / options.model.name)}


def _figures(reference: Reference, model: Path) -> dict[str, Any]:
    try:
        sums = reference.sums(model)
    except TailorError as error:
        return {"error": str(error)}
    total = LogitSums()
    for each in sums.values():
        total += each
    return {
        "kl": {name: each.kl_mean for name, each in sums.items()},
        "kl_mean": total.kl_mean,
        "perplexity": total.perplexity_candidate,
        "perplexity_reference": total.perplexity_reference,
        "top1": total.top1_agreement,
    }


def _print(row: dict[str, Any], *, header: bool) -> None:
    """Print one line of the table, and the line of the original above the first."""
    if "error" in row:
        print(f"| {row['row']} | {row['error']} |", flush=True)
        return
    if header:
        names = list(row["kl"])
        print("| recipe | MB | bpw | perplexity | top-1 | KL | " + " | ".join(names) + " |")
        print("| --- |" + " ---: |" * (5 + len(names)))
        print(f"| (original) | | | {row['perplexity_reference']:.2f} | | |" + " |" * len(names))
    size = f"{row['file_bytes'] / 1e6:.1f} | {row['bits_per_weight']:.2f}" if "file_bytes" in row else " | "
    kl = " | ".join(f"{each:.4f}" for each in (row["kl_mean"], *row["kl"].values()))
    print(f"| {row['row']} | {size} | {row['perplexity']:.2f} | {row['top1']:.3f} | {kl} |", flush=True)


if __name__ == "__main__":
    main()
