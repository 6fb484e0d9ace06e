"""Run the cases of docs/cases on models of their real size, and write the figures into the pages.

`python cases.py --gemma-fp32 FOLDER --gemma-fp16 FOLDER --tokenizer FILE --seq2seq FOLDER [--only CASE...]`: Gemma 3
270M as torch.onnx exported it, its tokenizer.json with config.json beside it, and what seq2seq_export.py wrote. A case
whose model is not given is left out. The other models are made on the way, in the scratch folder: about 8 GB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from case_page import write_figures
from processes import Run, json_of, run, seconds_of_a_token, tailor

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One page."""

    page: str
    recipe: str
    model: str
    """A key of `_MAKERS`."""
    text: bool = True
    """Whether it is measured on a text; with random weights, random tokens say as much."""
    client: str | None = None
    """What will load the folder, where that needs files of its own."""


CASES = (
    Case("llama-unpacked", "unpack-rtn", "llama", text=False),
    Case("phi-k-quant", "k-quant", "phi", text=False),
    Case("phi-float-table", "k-quant-float-table", "phi", text=False),
    Case("head-8bit", "k-quant-last", "gemma-fp32"),
    Case("mixed", "k-quant-mixed", "gemma-fp32"),
    Case("transformers-js", "web", "gemma-fp16", client="transformers.js"),
    Case("int4-head", "tie", "gemma-int4"),
    Case("seq2seq", "seq2seq", "seq2seq", text=False),
)


def main() -> None:
    """Run the chosen cases, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gemma-fp32", type=Path)
    parser.add_argument("--gemma-fp16", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--seq2seq", type=Path)
    parser.add_argument("--only", nargs="*", default=[case.page for case in CASES])
    parser.add_argument("--scratch", type=Path, help="keep the models here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnx-tailor-cases-") as temporary:
        scratch = options.scratch or Path(temporary)
        for case in (found for page in options.only for found in CASES if found.page == page):
            model = _model(case.model, options, scratch)
            if model is None:
                print(f"{case.page}: its model is not given")
                continue
            write_figures(HERE.parent / "docs" / "cases" / f"{case.page}.md", measure(case, model, scratch))
            print(f"{case.page}: done", flush=True)


def measure(case: Case, model: Path, scratch: Path) -> dict[str, Any]:
    """Copy the model, run the recipe, compare, and return what the page shows."""
    out, copy = scratch / "out", scratch / "copy"
    for folder in (out, copy):
        shutil.rmtree(folder, ignore_errors=True)
    copied = run(["cp", "-rL", str(model), str(copy)], "cp")
    shutil.rmtree(copy)
    client = ("--client", case.client) if case.client else ()
    ran = run(tailor("run", case.recipe, model, "-o", out, *client, "--json"), case.recipe)
    found = {
        "before": _inspected(model),
        "after": _inspected(out / "onnx" if case.client else out),
        "report": json_of([sys.executable, "-c", f"print(open({str(out / 'tailor-report.json')!r}).read())"]),
        "run": _cost(ran, copied),
        "files": [_compared(case, _original(model, file), file) for file in sorted(out.rglob("*.onnx"))],
    }
    shutil.rmtree(out)
    return found


def _original(model: Path, file: Path) -> Path:
    """Return what `file` was made of; a client's layout has names of its own."""
    return model / file.name if (model / file.name).exists() else model / "model.onnx"


def _cost(ran: Run, copied: Run) -> dict[str, float]:
    """Return the figures of a run; processor time, which other work on the machine stretches less than the clock's."""
    return {"seconds": ran.cpu_seconds, "copies": ran.cpu_seconds / copied.cpu_seconds, "peak_mb": ran.peak_rss / 1e6}


def _inspected(folder: Path) -> str:
    environment = {**os.environ, "COLUMNS": "112"}
    done = subprocess.run(
        tailor("inspect", folder), check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


def _compared(case: Case, before: Path, after: Path) -> dict[str, Any]:
    """Compare one file with what was made of it, and the time of a token where it has a cache."""
    text = ["--text", "bundled", "--windows", "2"] if case.text else ["--windows", "1"]
    found = json_of(tailor("verify", before, after, *text, "--json"))
    found["file"] = after.name
    found["token_ratio"] = None
    if found["decode_difference"] is not None:
        found["token_ratio"] = seconds_of_a_token(after) / seconds_of_a_token(before)
    return found


def _model(name: str, options: argparse.Namespace, scratch: Path) -> Path | None:
    """Return the folder of a model, made if it is not there."""
    folder: Path = scratch / name
    if name in {"llama", "phi"}:
        if not folder.exists():
            run([sys.executable, str(HERE / "shaped.py"), name, str(folder)], name)
        return folder
    if name == "seq2seq":
        found: Path | None = options.seq2seq
        return found
    source = options.gemma_fp16 if name == "gemma-fp16" else options.gemma_fp32
    if source is None or options.tokenizer is None:
        return None
    if not folder.exists():
        folder.mkdir(parents=True)
        for name_beside in ("tokenizer.json", "config.json"):
            (folder / name_beside).symlink_to(options.tokenizer.with_name(name_beside).absolute())
        if name == "gemma-int4":
            run([sys.executable, str(HERE / "int4_head.py"), str(source), str(folder)], name)
        else:
            for file in source.glob("model.onnx*"):
                (folder / file.name).symlink_to(file.absolute())
    return folder


if __name__ == "__main__":
    main()
