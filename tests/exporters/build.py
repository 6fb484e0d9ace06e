"""Build the matrix: one child process for each export, one after another, each with a time limit.

`python build.py OUT --python torch=VENV/bin/python --python optimum=... --python genai=...`; see README.md.
An export that fails leaves a folder with manifest.json alone, which holds the reason.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Named here too, because this process imports neither torch nor transformers.
DECODERS = ("llama", "llama-untied", "qwen3", "phi3", "phi4", "gpt2", "gemma3", "qwen3-moe", "lfm2")
SEQ2SEQ = ("t5", "bart", "whisper")
MASKED = ("bert", "modernbert")
# Exported in float32 alone: each differs from a family above in one way that matters here.
MORE_DECODERS = (
    *("qwen2", "mistral", "gemma2", "granite", "cohere", "olmo2", "smollm3", "stablelm", "starcoder2", "phi"),
    *("gpt-neox", "gptj", "opt", "bloom", "falcon", "mixtral", "olmoe", "gpt-oss", "deepseek-v3"),
)
MORE_SEQ2SEQ = ("marian", "m2m100", "mt5")
MORE_MASKED = ("roberta", "distilbert", "electra", "albert")
MORE_BY_OPTIMUM = ("qwen2", "gpt-neox", "opt", *MORE_SEQ2SEQ)
EXPORTERS = (("dynamo", "torch"), ("torchscript", "torch"), ("optimum-past", "optimum"), ("optimum", "optimum"))
DTYPES = ("fp32", "fp16", "bf16")
GENAI = (
    "fp32",
    "fp16",
    "int4",
    "int4-k_quant",
    "int4-rtn",
    "int4-asymmetric",
    "int4-k_quant_last",
    "int4-k_quant_mixed",
    "int8",
)
GENAI_MORE = ("qwen2", "mistral", "gemma2", "granite", "smollm3", "phi", "gpt-oss")
GENAI_OLD = ("fp32", "fp16", "int4", "int4-k_quant_mixed")
"""Strangers' files come from older builders, which write other graphs; this one also takes Gemma 3."""
# Files that ONNX Runtime's quantizer makes of exports above: what transformers.js calls q4 and q4f16, and the
# algorithms that Olive and the GenAI builder call too.
QUANTIZED = (
    ("q4", "torchscript-llama-fp32"),
    ("q4f16", "torchscript-llama-fp16"),
    ("q4", "dynamo-qwen3-fp32"),
    ("q4f16", "dynamo-gemma3-fp16"),
    ("rtn", "torchscript-gpt2-fp32"),
    ("rtn", "dynamo-llama-untied-fp32"),
    ("k_quant", "dynamo-lfm2-fp32"),
    ("k_quant", "torchscript-phi4-fp32"),
)
OLIVE = (
    "torchscript-phi4-fp32",
    "dynamo-phi4-fp32",
    "torchscript-llama-fp32",
    "dynamo-qwen3-fp16",
    "optimum-gpt2-fp32",
    "torchscript-gemma3-fp32",
)


@dataclass(frozen=True)
class Export:
    """One cell of the matrix."""

    exporter: str
    family: str
    dtype: str
    environment: str
    """Which of the virtual environments runs it."""
    command: tuple[str, ...]
    """Script and arguments before the output folder."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.exporter}-{self.family}-{self.dtype}".replace(" ", "-")


def exports() -> list[Export]:
    """Return every cell, the broadest coverage first."""
    found = []
    for dtype in DTYPES:
        for exporter, environment in EXPORTERS:
            script = f"{environment}_export.py"
            found += [
                Export(exporter, family, dtype, environment, (script, exporter, family, dtype))
                for family in (*DECODERS, *SEQ2SEQ, *MASKED)
                if exporter != "optimum-past" or family not in MASKED
            ]
    for exporter, environment in EXPORTERS[:3]:
        families = MORE_BY_OPTIMUM if environment == "optimum" else (*MORE_DECODERS, *MORE_SEQ2SEQ, *MORE_MASKED)
        script = f"{environment}_export.py"
        found += [
            Export(exporter, family, "fp32", environment, (script, exporter, family, "fp32")) for family in families
        ]
    found += [_genai("genai", family, kind) for kind in GENAI for family in (*DECODERS, "whisper")]
    found += [_genai("genai", family, kind) for kind in ("fp32", "int4") for family in GENAI_MORE]
    found += [_genai("genai-0.11", family, kind) for kind in GENAI_OLD for family in ("gemma3", "llama")]
    found += [
        _quantized(f"{method} of", source, "torch", "quantized_export.py", method) for method, source in QUANTIZED
    ]
    for method in ("rtn", "k_quant"):
        found += [_quantized(f"olive {method} of", source, "olive", "olive_export.py", method) for source in OLIVE]
    return found


def _genai(exporter: str, family: str, kind: str) -> Export:
    return Export(exporter, family, kind, exporter, ("genai_export.py", family, kind))


def _quantized(title: str, source: str, environment: str, script: str, method: str) -> Export:
    """Return the cell of a file that a quantizer makes of the export `source`."""
    exporter, _, rest = source.partition("-")
    family, _, dtype = rest.rpartition("-")
    return Export(f"{title} {exporter}", family, dtype, environment, (script, method, f"{{out}}/{source}"))


def build(export: Export, python: str, out: Path, limit: float) -> dict[str, object]:
    """Run one export in a child and return its manifest."""
    folder, started = out / export.name, time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [python, str(HERE / export.command[0]), *(part.format(out=out) for part in export.command[1:])]
    command.append(str(folder))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = None if done.returncode == 0 else (_last_error(lines) or f"exit status {done.returncode}")
    except subprocess.TimeoutExpired:
        reason = f"not done after {limit:.0f} s"
    if reason is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    versions = folder / "versions.json"
    manifest = {
        "exporter": export.exporter,
        "family": export.family,
        "dtype": export.dtype,
        "reason": reason,
        "seconds": round(time.monotonic() - started, 1),
        "versions": json.loads(versions.read_text()) if versions.exists() else {},
    }
    versions.unlink(missing_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _last_error(lines: list[str]) -> str | None:
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    # torch.onnx ends with a page of advice; the first error is the cause.
    return (errors or lines[-1:] or [None])[0]


def main() -> None:
    """Build what is asked for and print one line for each export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", action="append", default=[], metavar="ENVIRONMENT=PATH")
    parser.add_argument("--only", default="*", help="a pattern of names, such as 'dynamo-*-fp16'")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one export")
    parser.add_argument("--missing", action="store_true", help="leave alone what was built before")
    options = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in options.python)
    for export in exports():
        if export.environment not in pythons or not fnmatch.fnmatch(export.name, options.only):
            continue
        if options.missing and (options.out / export.name / "manifest.json").exists():
            continue
        manifest = build(export, pythons[export.environment], options.out, options.limit)
        print(f"{export.name}: {manifest['reason'] or 'built'} ({manifest['seconds']} s)", flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
