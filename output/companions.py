"""The files beside a model that its users need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

_PATTERNS = (
    "config.json",
    "genai_config.json",
    "generation_config.json",
    "*processor*.json",
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
_GENAI = "genai_config.json"


@dataclass(frozen=True)
class Companion:
    """One file beside the models, copied unless it has to say something else of the output."""

    path: Path
    text: str | None = None
    """What is written in its place; None for the same bytes."""

    @property
    def name(self) -> str:
        """Its name, before and after."""
        return self.path.name

    def write(self, folder: Path) -> None:
        """Write it into `folder`."""
        if self.text is None:
            shutil.copyfile(self.path, folder / self.name)
        else:
            (folder / self.name).write_text(self.text, encoding="utf-8")


def is_companion(name: str) -> bool:
    """Whether a file of this name is one."""
    return any(fnmatchcase(name, pattern) for pattern in _PATTERNS)


def companions(source: Path) -> list[Companion]:
    """Return the companions in the folder `source`, by name."""
    found = {file for pattern in _PATTERNS for file in source.glob(pattern) if file.is_file()}
    return [Companion(file) for file in sorted(found)]


def name_models(companion: Companion, renamed: Mapping[str, str]) -> Companion:
    """Let a genai_config.json name the ONNX files as they are called now; others stay as they are.

    `renamed` holds the path of every written model from the output folder, by the name that it had. A config that names
    one file alone means the one model there is, whatever that was called.
    """
    if companion.name != _GENAI:
        return companion
    try:
        config = json.loads(companion.path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return companion  # not ours to judge; whoever reads it will say so
    places = [each for each in _objects(config) if isinstance(each.get("filename"), str)]
    changed = False
    for place in places:
        old = place["filename"]
        new = next(iter(renamed.values())) if len(places) == len(renamed) == 1 else renamed.get(old, old)
        changed |= new != old
        place["filename"] = new
    return replace(companion, text=json.dumps(config, indent=4, ensure_ascii=False)) if changed else companion


def write_all(files: Sequence[Companion], folder: Path) -> list[str]:
    """Write the files into `folder`; return their names."""
    for file in files:
        file.write(folder)
    return [file.name for file in files]


def _objects(value: Any) -> list[dict[str, Any]]:
    """Return every JSON object within `value`."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return ([value] if isinstance(value, dict) else []) + [each for part in parts for each in _objects(part)]
