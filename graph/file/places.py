"""Where the files of a model's folder are: side by side, or the ONNX files in `onnx/` as transformers.js has them."""

from __future__ import annotations

from pathlib import Path

from onnx_tailor.errors import ModelError

ONNX = "onnx"
"""The folder of the ONNX files within a transformers.js folder."""


def onnx_files(folder: Path) -> list[Path]:
    """Return the ONNX files of a folder, or of its folder `onnx` where it holds none itself, by name."""
    return sorted(folder.glob("*.onnx")) or sorted((folder / ONNX).glob("*.onnx"))


def home(file: Path) -> Path:
    """Return the folder of the configs and the tokenizer of the ONNX file, or folder, at `file`."""
    folder = file if file.is_dir() else file.parent
    above = folder.absolute().parent
    is_inner = folder.absolute().name == ONNX and (above / "config.json").is_file()
    return above if is_inner and not (folder / "config.json").is_file() else folder


def model_files(model: Path) -> list[Path]:
    """Return the ONNX files that `model` names.

    Raises:
        ModelError: there is none.
    """
    try:
        model.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a RuntimeError where links form a circle
        said = "links that form a circle" if isinstance(error, RuntimeError) else (error.strerror or str(error))
        raise ModelError(f"{model}: cannot be read ({said})") from error
    if model.is_dir():
        found = onnx_files(model)
        if not found:
            raise ModelError(f"{model}: the folder holds no .onnx file")
        return found
    return [model]
