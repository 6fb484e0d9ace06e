"""One export quantized by Olive: `python olive_export.py PASS SOURCE FOLDER`, PASS being `rtn` or `k_quant`."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from olive.workflows import run

PASSES = {"rtn": "OnnxBlockWiseRtnQuantization", "k_quant": "OnnxKQuantQuantization"}


def main(method: str, source: Path, folder: Path) -> None:
    """Run the one pass with its defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        run(
            {
                "input_model": {"type": "OnnxModel", "model_path": str(source / "model.onnx")},
                "passes": {"quantize": {"type": PASSES[method]}},
                "output_dir": f"{work}/out",
                "cache_dir": f"{work}/cache",
                "log_severity_level": 3,
            }
        )
        files = [file for file in Path(work, "out").glob("model.onnx*") if file.is_file()]
        if not files:
            raise RuntimeError("Olive ended without a model")
        for file in files:
            shutil.copyfile(file, folder / file.name)
    for name in ("config.json", "genai_config.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    (folder / "versions.json").write_text(json.dumps({"olive-ai": version("olive-ai")}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
