"""The Python interface: what the command line does, as functions. `import onnx_tailor as ot` offers them.

    import onnx_tailor as ot

    report = ot.run([ot.passes.TieEmbeddings(), ot.passes.Quantize(bits=4)], "model.onnx", "out")
    print(report.after.bits_per_weight, ot.compare("model.onnx", "out/model.onnx").kl_mean)

Every function raises `ot.TailorError` with one sentence where the command line would print it.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_tailor import pipeline
from onnx_tailor import recipe as recipes
from onnx_tailor.graph.file.load import load as load_graph
from onnx_tailor.passes.base import Pass
from onnx_tailor.recipe import Recipe
from onnx_tailor.remote import Place, place

if TYPE_CHECKING:
    from onnx_tailor.graph.meaning.inspection import Inspection
    from onnx_tailor.graph.model import TailorModel
    from onnx_tailor.output.arrangement import Client
    from onnx_tailor.progress import Progress
    from onnx_tailor.report import Report
    from onnx_tailor.verify import Comparison, Tokens

__all__ = ["compare", "inspect", "load", "run"]

Location = str | PathLike[str]


def load(model: Location) -> TailorModel:
    """Read the graph of an ONNX file; its weights stay in their files.

    Raises:
        ModelError: the file or one of its data files cannot be read, or is no ONNX model.
    """
    return load_graph(Path(model))


def run(
    recipe: str | Recipe | Sequence[Pass],
    model: Location,
    out: Location | None,
    *,
    target: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    client: Client | None = None,
    per_model: bool = False,
    max_shard_size: int | None = None,
    executor: str = "threads",
    progress: Progress | None = None,
) -> Report:
    """Run a recipe, or a list of passes, on an ONNX file or a folder of them, and write the result into `out`.

    Args:
        recipe: the name of a shipped recipe, the path of a YAML file, a loaded one, or passes.
        model: an ONNX file, or a folder; an address such as s3://BUCKET/FOLDER, too, and so is `out`.
        out: the folder to write; it appears when it is whole. None with `dry_run`.
        target: what will run the model; wins over the recipe's.
        dry_run: run the passes and report, but write nothing.
        overwrite: replace `out` where it exists.
        resume: take over what an interrupted run of the same recipe on the same model has finished.
        client: lay the output out for `transformers.js`.
        per_model: give each model of a folder a data file of its own.
        max_shard_size: bytes that no data file exceeds.
        executor: `threads`, or `dask://HOST:PORT` for the workers of a cluster.
        progress: is told about the bytes done.

    Raises:
        UsageError: the recipe is wrong or does not fit the model, or `out` is in the way.
        ModelError: the model cannot be read, or not rewritten as asked.
        OutputError: another run is writing to `out`, or its disk fails or is full.
    """
    if isinstance(recipe, str):
        recipe = recipes.load(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = recipes.of_passes(recipe)
    return pipeline.run(
        recipe,
        _place(model),
        None if out is None else _place(out),
        target=target,
        dry_run=dry_run,
        overwrite=overwrite,
        resume=resume,
        client=client,
        per_model=per_model,
        max_shard_size=max_shard_size,
        executor=executor,
        progress=progress,
    )


def _place(location: Location) -> Place:
    return place(location) if isinstance(location, str) else Path(location)


def inspect(model: Location) -> Inspection:
    """Describe an ONNX file, or every one of a folder: tables, heads, whether they are tied, projections, bytes.

    Raises:
        ModelError: a file cannot be read.
    """
    return pipeline.inspect(Path(model))


def compare(reference: Location, candidate: Location, tokens: Tokens | None = None) -> Comparison:
    """Run two models in ONNX Runtime on the same tokens, by default random ones, and measure the difference.

    `onnx_tailor.verify` reads tokens from texts and files.

    Raises:
        ModelError: a model does not load or run, or has no outputs in common with the other.
        UsageError: the tokens do not fit the models.
    """
    from onnx_tailor import verify  # ONNX Runtime takes long to import

    return verify.compare(Path(reference), Path(candidate), tokens)
