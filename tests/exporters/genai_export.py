"""One export by onnxruntime-genai's builder: `python genai_export.py FAMILY PRECISION[-ALGORITHM] FOLDER`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import families
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def main(family: str, kind: str, folder: Path) -> None:
    """Save a checkpoint with a tokenizer and let the builder read it."""
    precision, *rest = kind.split("-")
    options = ["hf_token=false"]
    if "asymmetric" in rest:
        rest.remove("asymmetric")
        options.append("is_symmetric=false")
    if rest:
        options.append(f"algo_config={rest[0]}")
    with tempfile.TemporaryDirectory() as work:
        checkpoint = Path(work) / "checkpoint"
        # ONNX Runtime's k_quant, which the builder calls, fails on rows of an odd number of blocks: 128, not 96.
        families.build(family, "bf16" if precision == "bf16" else "fp32", inner=128).save_pretrained(checkpoint)
        words = {f"w{number}": number for number in range(families.VOCABULARY)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))  # a token of text
        special = {"unk_token": "w0", "pad_token": "w0", "bos_token": "w1", "eos_token": "w2"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(checkpoint)
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-m", family, "-i", str(checkpoint), "-o", str(folder), "-p", precision, "-e", "cpu"]
        command += ["-c", str(Path(work) / "cache"), "--extra_options", *options]
        done = subprocess.run(command, check=False)
    if done.returncode:  # the builder has said why
        sys.exit(done.returncode)
    versions = {name: version(name) for name in ("torch", "transformers", "onnxruntime-genai", "onnxruntime", "onnx")}
    (folder / "versions.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
