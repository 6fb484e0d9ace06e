"""The command line: parse, call, print. Heavy modules load when a command first needs them."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_tailor import __version__, recipes
from onnx_tailor.console.errors import Commands
from onnx_tailor.console.lazy import lazy
from onnx_tailor.errors import UsageError

if TYPE_CHECKING:
    import onnx_tailor.passes as registry
    import onnx_tailor.verify as measure
    from onnx_tailor import option_errors, pipeline
    from onnx_tailor import recipe as reading
    from onnx_tailor.calibration import calibrate as calibrating
    from onnx_tailor.calibration import tokens as calibration_tokens
    from onnx_tailor.console import inspection, listing, progress, results
    from onnx_tailor.verify import Comparison, Tokens
else:
    calibrating = lazy("onnx_tailor.calibration.calibrate")
    calibration_tokens = lazy("onnx_tailor.calibration.tokens")
    inspection = lazy("onnx_tailor.console.inspection")
    listing = lazy("onnx_tailor.console.listing")
    measure = lazy("onnx_tailor.verify")
    option_errors = lazy("onnx_tailor.option_errors")
    pipeline = lazy("onnx_tailor.pipeline")
    progress = lazy("onnx_tailor.console.progress")
    reading = lazy("onnx_tailor.recipe")
    registry = lazy("onnx_tailor.passes")
    results = lazy("onnx_tailor.console.results")

__all__ = ["app", "main"]


class TargetName(StrEnum):
    """The targets, named here so that `--help` need not load them."""

    cpu = "cpu"
    cuda = "cuda"
    webgpu = "webgpu"
    portable = "portable"


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def _version(wanted: bool) -> None:
    """Answer --version."""
    if wanted:
        typer.echo(f"onnx-tailor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fit an ONNX language model that somebody else exported.

    Tie the embedding with the head, quantize each weight, and prove that it is the same model.
    """


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    model: Annotated[Path, typer.Argument(help="An ONNX file, or a folder of them.")],
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The folder to write.")] = None,
    target: Annotated[TargetName | None, typer.Option(help="What will run the model; wins over the recipe's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what would be done.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
    as_json: Json = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PASS.KEY=VALUE", help="Change an option of the recipe; may be repeated."),
    ] = None,
) -> None:
    """Run a recipe on a model and write the result."""
    if output is None and not dry_run:
        raise UsageError("there is no folder to write to; give one with -o OUT, or --dry-run")
    chosen = reading.load(recipe, settings=settings or ())
    watch = progress.progress()
    try:
        report = pipeline.run(
            chosen,
            model,
            output,
            target=target.value if target else None,
            dry_run=dry_run,
            overwrite=overwrite,
            progress=watch,
        )
    finally:
        watch.finish()
    if as_json:
        _print_json(report.to_json())
    else:
        results.show_report(report)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or a folder of them.")], as_json: Json = False
) -> None:
    """Show what is in a model: table, head, tied or not, projections, bytes."""
    found = pipeline.inspect(model).to_json()
    if as_json:
        _print_json(found)
    else:
        inspection.show_inspection(found)


@app.command()
def verify(
    reference: Annotated[Path, typer.Argument(help="The model to compare with: a file, or its folder.")],
    candidate: Annotated[Path, typer.Argument(help="The model that was made of it: likewise.")],
    *,
    tokens: Annotated[Path | None, typer.Option(help="Token ids, a .npy file of integers.")] = None,
    text: Annotated[Path | None, typer.Option(help="A text in UTF-8.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The text's tokenizer.json; by default the one beside REFERENCE.")
    ] = None,
    max_kl: Annotated[float | None, typer.Option(help="Exit 1 above this mean KL divergence, in nats.")] = None,
    max_difference: Annotated[
        float | None,
        typer.Option(help="Exit 1 where an output differs by more than this part of its largest value."),
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="Exit 1 below this share, 0 to 1, of equal most likely tokens.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run two models on the same tokens, random ones by default, and measure the difference."""
    chosen = _tokens(reference, tokens, text, tokenizer)
    found = measure.compare(_model_file(reference), _model_file(candidate), chosen)
    exceeded = _exceeded(found, max_kl, max_difference, min_top1)
    if as_json:
        _print_json({**found.to_json(), "exceeded": exceeded})
    else:
        results.show_comparison(found, exceeded)
    if exceeded:
        raise typer.Exit(1)


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="The ONNX file, or its folder, that is to be quantized.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The calibration file to write, an .npz.")],
    text: Annotated[Path | None, typer.Option(help="A text in UTF-8; by default a bundled English one.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The text's tokenizer.json; by default the one beside MODEL.")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token ids in a text's place, a .npy file of integers.")] = None,
    hessians: Annotated[bool, typer.Option("--hessians", help="Also what gptq needs: a larger file.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Run a model on a text and note what its weights are multiplied by, for `quantize` to weigh errors with."""
    file = _model_file(model)
    if output.exists() and not overwrite:
        raise UsageError(f"{output}: exists already; choose another name, or give --overwrite")
    chosen = calibration_tokens.choose(file, text=text, tokenizer=tokenizer, tokens=tokens)
    watch = progress.progress()
    try:
        report = calibrating.calibrate(file, output, chosen, hessians=hessians, progress=watch)
    finally:
        watch.finish()
    if as_json:
        _print_json(report.to_json())
    else:
        results.show_calibration(report)


@app.command()
def passes(
    name: Annotated[str | None, typer.Argument(help="A pass, to show its options.")] = None,
    as_json: Json = False,
) -> None:
    """List the passes, or show one with its options."""
    if name is not None and name not in registry.PASSES:
        advice = option_errors.nearest(name, tuple(registry.PASSES))
        raise UsageError(f"no pass is called {name!r}{advice or '; `onnx-tailor passes` lists them'}")
    if as_json:
        shown = [registry.PASSES[name]] if name else list(registry.PASSES.values())
        _print_json({"passes": [listing.pass_json(cls) for cls in shown]})
    elif name:
        listing.show_pass(registry.PASSES[name])
    else:
        listing.show_passes()


@app.command("recipes")
def recipes_(
    name: Annotated[str | None, typer.Argument(help="A recipe, to print its text.")] = None,
    as_json: Json = False,
) -> None:
    """List the shipped recipes, or print one, to be saved and edited."""
    if name is not None and name not in recipes.names():
        advice = option_errors.nearest(name, recipes.names())
        raise UsageError(f"no recipe is called {name!r}{advice or '; `onnx-tailor recipes` lists them'}")
    if as_json:
        shown = [name] if name else recipes.names()
        _print_json({"recipes": [_recipe_json(each) for each in shown]})
    elif name:
        typer.echo(recipes.path(name).read_text(encoding="utf-8"), nl=False)
    else:
        listing.show_recipes()


def main() -> None:
    """Run the command line; the entry point of the `onnx-tailor` script."""
    app(prog_name="onnx-tailor")


def _model_file(path: Path) -> Path:
    """Return the one ONNX file of a folder, such as `run` writes; a file as it is."""
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.onnx"))
    if len(files) != 1:
        raise UsageError(f"{path} holds {len(files)} ONNX files; give the one to compare")
    return files[0]


def _tokens(reference: Path, tokens: Path | None, text: Path | None, tokenizer: Path | None) -> "Tokens | None":
    """Read the tokens that the options name; None for random ones."""
    if tokens is not None and text is not None:
        raise UsageError("--tokens and --text exclude each other; give one of them")
    if tokenizer is not None and text is None:
        raise UsageError("--tokenizer needs --text, the text to encode with it")
    if tokens is not None:
        return measure.from_npy(tokens)
    if text is None:
        return None
    folder = reference if reference.is_dir() else reference.parent
    return measure.from_text(text, tokenizer or folder / "tokenizer.json")


def _exceeded(
    found: "Comparison", max_kl: float | None, max_difference: float | None, min_top1: float | None
) -> list[str]:
    """Return a sentence for each limit that the comparison exceeds."""
    lines = []
    for option, limit in (("--max-kl", max_kl), ("--min-top1", min_top1)):
        if limit is not None and found.kl_mean is None:
            raise UsageError(f"{option} needs logits, and the models have none")
    # Written as "not within" so that NaN exceeds every limit.
    if max_kl is not None and found.kl_mean is not None and not found.kl_mean <= max_kl:
        lines.append(f"the mean KL divergence {found.kl_mean:.4g} is above the limit {max_kl:g}")
    if min_top1 is not None and found.top1_agreement is not None and not found.top1_agreement >= min_top1:
        lines.append(f"the top-1 agreement {found.top1_agreement:.4g} is below the limit {min_top1:g}")
    if max_difference is not None:
        lines.extend(
            f"{output.name} differs by {output.max_rel:.4g} of its largest value; the limit is {max_difference:g}"
            for output in found.outputs
            if not output.max_rel <= max_difference
        )
    return lines


def _recipe_json(name: str) -> dict[str, str]:
    """Return what `recipes --json` says about one recipe."""
    text = recipes.path(name).read_text(encoding="utf-8")
    return {"name": name, "summary": recipes.summary(name), "text": text}


def _print_json(value: dict[str, Any]) -> None:
    """Print the one object of standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
