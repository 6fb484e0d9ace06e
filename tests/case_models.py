"""Small stand-ins for the models of docs/cases, of the same graphs, so that every command of the pages can be run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import language_model
import shaped

from onnx_tailor import pipeline, recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-llama"
SMALL = {"hidden": 128, "vocabulary": 400, "layers": 2, "inner": 256, "heads": 4, "kv_heads": 2, "head_size": 64}


def stand_in(page: str, folder: Path) -> None:
    """Write what MODEL means on the page `page` into `folder`; by default the bundled model."""
    if page.startswith("llama-"):
        shaped.write(replace(shaped.LLAMA, **SMALL), folder)
    elif page.startswith("phi-"):
        shaped.write(replace(shaped.PHI, **SMALL), folder)
    elif page == "int4-head":
        _quantized_head(folder)
    elif page == "seq2seq":
        shutil.copytree(Path(__file__).parent / "fixtures" / "exports" / "optimum-past-bart-fp32", folder)
    else:
        shutil.copytree(EXAMPLE, folder)


def _quantized_head(folder: Path) -> None:
    """Quantize the head, not the table: the file has two copies, so that one rule leaves the other in float."""
    folder.mkdir()
    source = folder / "source.onnx"
    language_model.Model(head="separate", columns=64, vocabulary=4096).save(source)
    text = "recipe: 1\npasses:\n  - quantize: {method: rtn, bits: 4, block_size: 32, symmetric: true}\n"
    made = folder.parent / f"{folder.name}-quantized"
    pipeline.run(recipe.parse(text, "stand-in"), source, made)
    shutil.rmtree(folder)
    shutil.move(made, folder)
    (folder / "source.onnx").rename(folder / "model.onnx")
    shutil.copyfile(EXAMPLE / "tokenizer.json", folder / "tokenizer.json")
