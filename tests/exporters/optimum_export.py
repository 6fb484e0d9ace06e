"""One export by optimum-onnx: `python optimum_export.py optimum|optimum-past FAMILY DTYPE FOLDER`.

With `optimum-past` the decoders take and give states; sequence-to-sequence models become encoder_model.onnx,
decoder_model.onnx, decoder_with_past_model.onnx and the merged decoder.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import families
from optimum.exporters.onnx import onnx_export_from_model


def main(exporter: str, family: str, dtype: str, folder: Path) -> None:
    """Export one model."""
    model = families.build(family, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    past = exporter == "optimum-past"
    task = "text-generation"
    if family in families.ENCODERS:
        task = "fill-mask"
    elif family in families.SEQ2SEQ:
        task = "automatic-speech-recognition" if family == "whisper" else "text2text-generation"
    task += "-with-past" if past else ""
    onnx_export_from_model(model, folder, task=task, do_validation=False, device="cpu")
    versions = {name: version(name) for name in ("torch", "transformers", "optimum", "optimum-onnx", "onnx")}
    (folder / "versions.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
