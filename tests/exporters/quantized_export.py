"""One quantized file from an export that is there: `python quantized_export.py METHOD SOURCE FOLDER`.

METHOD is `q4` or `q4f16`, as transformers.js' scripts call ONNX Runtime's quantizer, or `k_quant` or `rtn`.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import onnx
from onnxruntime.quantization import matmul_nbits_quantizer as nbits

ALGORITHMS = {"k_quant": nbits.KQuantWeightOnlyQuantConfig, "rtn": nbits.RTNWeightOnlyQuantConfig}


def main(method: str, source: Path, folder: Path) -> None:
    """Quantize one file."""
    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load(source / "model.onnx")
    plain = method.startswith("q4")
    quantizer = nbits.MatMulNBitsQuantizer(
        model,
        block_size=32,
        is_symmetric=plain,
        accuracy_level=4 if plain else None,
        algo_config=None if plain else ALGORITHMS[method](),
    )
    quantizer.process()
    onnx.save(quantizer.model.model, folder / "model.onnx")
    for name in ("config.json", "genai_config.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    (folder / "versions.json").write_text(json.dumps({"onnxruntime": version("onnxruntime")}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
