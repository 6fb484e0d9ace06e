"""The files beside a model that its users need."""

from __future__ import annotations

import shutil
from pathlib import Path

_PATTERNS = (
    "config.json",
    "genai_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)


def companions(source: Path) -> list[Path]:
    """Return the companions in the folder `source`, by name."""
    found = {file for pattern in _PATTERNS for file in source.glob(pattern) if file.is_file()}
    return sorted(found)


def copy(files: list[Path], folder: Path) -> list[str]:
    """Copy the files into `folder`; return their names."""
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in files]
