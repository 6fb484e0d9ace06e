"""The command line: parse, call, print. Heavy modules load when a command first needs them."""

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_tailor import __version__, recipes, units
from onnx_tailor.console.arguments import (
    ClientName,
    LimitOption,
    ReportOption,
    TargetName,
    TextOption,
    TokenizerOption,
    TokensOption,
    WindowOption,
    WindowsOption,
)
from onnx_tailor.console.errors import Commands
from onnx_tailor.console.lazy import lazy
from onnx_tailor.console.start import start
from onnx_tailor.errors import Terminated, UsageError
from onnx_tailor.remote import place

if TYPE_CHECKING:
    import onnx_tailor.passes as registry
    import onnx_tailor.recommend as recommendation
    import onnx_tailor.verify as measure
    from onnx_tailor import pipeline, spelling
    from onnx_tailor import recipe as reading
    from onnx_tailor.calibration import calibrate as calibrating
    from onnx_tailor.calibration import tokens as calibration_tokens
    from onnx_tailor.console import comparison, inspection, linting, listing, measuring, printing, progress, results
    from onnx_tailor.console import schema as schemas
    from onnx_tailor.lint import fix as fixing
    from onnx_tailor.lint import rules as linter
    from onnx_tailor.output import check as checking
    from onnx_tailor.output import head_start
    from onnx_tailor.reporting import build as building
else:
    building = lazy("onnx_tailor.reporting.build")
    calibrating = lazy("onnx_tailor.calibration.calibrate")
    calibration_tokens = lazy("onnx_tailor.calibration.tokens")
    checking = lazy("onnx_tailor.output.check")
    comparison = lazy("onnx_tailor.console.comparison")
    fixing = lazy("onnx_tailor.lint.fix")
    head_start = lazy("onnx_tailor.output.head_start")
    inspection = lazy("onnx_tailor.console.inspection")
    linter = lazy("onnx_tailor.lint.rules")
    linting = lazy("onnx_tailor.console.linting")
    listing = lazy("onnx_tailor.console.listing")
    measuring = lazy("onnx_tailor.console.measuring")
    measure = lazy("onnx_tailor.verify")
    spelling = lazy("onnx_tailor.spelling")
    pipeline = lazy("onnx_tailor.pipeline")
    printing = lazy("onnx_tailor.console.printing")
    progress = lazy("onnx_tailor.console.progress")
    reading = lazy("onnx_tailor.recipe")
    recommendation = lazy("onnx_tailor.recommend")
    registry = lazy("onnx_tailor.passes")
    results = lazy("onnx_tailor.console.results")
    schemas = lazy("onnx_tailor.console.schema")

__all__ = ["app", "main"]


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
    model: Annotated[str, typer.Argument(help="An ONNX file, or a folder of them; s3:// and the like, too.")],
    *,
    output: Annotated[str | None, typer.Option("-o", "--output", help="The folder to write.")] = None,
    target: Annotated[TargetName | None, typer.Option(help="What will run the model; wins over the recipe's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what would be done.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run of the same command was interrupted.")
    ] = False,
    client: Annotated[
        ClientName | None, typer.Option(help="What will load the folder, where its names and configs must be its own.")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Divide the weights into files of at most this, as in 2GB.")
    ] = None,
    data_per_model: Annotated[
        bool, typer.Option("--data-per-model", help="Give each model of a folder its own data file.")
    ] = False,
    executor: Annotated[
        str, typer.Option(metavar="WHERE", help="Who computes: threads of this process, or dask://HOST:PORT.")
    ] = "threads",
    verify: Annotated[
        bool, typer.Option("--verify", help="Measure the result as the command `verify` does, before it is kept.")
    ] = False,
    tokens: TokensOption = None,
    text: TextOption = None,
    tokenizer: TokenizerOption = None,
    window: WindowOption = None,
    windows: WindowsOption = None,
    limit: LimitOption = None,
    report: ReportOption = None,
    as_json: Json = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PASS.KEY=VALUE", help="Change an option of the recipe; may be repeated."),
    ] = None,
) -> None:
    """Run a recipe on a model and write the result."""
    if output is None and not dry_run:
        raise UsageError("there is no folder to write to; give one with -o OUT, or --dry-run")
    source = place(model)
    hashed_here = source if isinstance(source, Path) and executor == "threads" and not dry_run else None
    with head_start.HeadStart(hashed_here) as ahead:
        chosen = reading.load(recipe, settings=settings or ())
        options = measuring.TokenOptions(tokens=tokens, text=text, tokenizer=tokenizer, window=window, windows=windows)
        watch = progress.progress()
        page = None if report is None else building.page_writer(report)
        check = measuring.run_check(options, source, limit or (), page, watch, wanted=verify, dry_run=dry_run)
        try:
            done = pipeline.run(
                chosen,
                source,
                None if output is None else place(output),
                target=target.value if target else None,
                dry_run=dry_run,
                overwrite=overwrite,
                resume=resume,
                client=client.value if client else None,
                per_model=data_per_model,
                max_shard_size=None if max_shard_size is None else units.parse_size(max_shard_size),
                executor=executor,
                progress=watch,
                check=check,
                ahead=ahead,
            )
        finally:
            watch.finish()
            if check is not None and not as_json:
                comparison.show_measured(check.found)
    with printing.done_already("nothing was to be written" if output is None else f"{output} is written"):
        if as_json:
            _print_json(done.to_json())
        else:
            results.show_report(done)


@app.command()
def check(folder: Annotated[Path, typer.Argument(help="A folder that `run` wrote.")], as_json: Json = False) -> None:
    """Prove that a folder still holds the bytes that its tailor-report.json tells of."""
    watch = progress.progress()
    try:
        found = checking.check(folder, watch)
    finally:
        watch.finish()
    if as_json:
        _print_json(found.to_json())
    else:
        results.show_check(found)
    if not found.whole:
        raise typer.Exit(1)


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
def lint(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or a folder of them.")],
    *,
    target: Annotated[TargetName, typer.Option(help="What is to run the model.")],
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="RECIPE.yaml", help="Write the recipe that mends what was found.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a target would refuse, compute wrongly or pay for, and what mends it. Exit 1 if there is any problem."""
    if fix is not None and fix.exists():
        raise UsageError(f"{fix}: exists already; give --fix a new file")
    found = linter.lint(model, target.value)
    text = fixing.recipe(found) if fix is not None else None
    if fix is not None and text is not None:
        fix.write_text(text, encoding="utf-8")
    if as_json:
        _print_json({**found.to_json(), "recipe": str(fix) if text is not None else None})
    else:
        linting.show_lint(found)
        if fix is not None:
            typer.echo(
                f"wrote {fix}" if text is not None else f"nothing that was found has a mend; {fix} was not written"
            )
    if found.problems:
        raise typer.Exit(1)


@app.command()
def verify(
    reference: Annotated[Path, typer.Argument(help="The model to compare with: a file, or its folder.")],
    candidates: Annotated[list[Path], typer.Argument(metavar="CANDIDATE...", help="What was made of it: likewise.")],
    *,
    tokens: TokensOption = None,
    text: TextOption = None,
    tokenizer: TokenizerOption = None,
    window: WindowOption = None,
    windows: WindowsOption = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Compare what the models compute on the way, layer by layer.")
    ] = False,
    blame: Annotated[
        bool, typer.Option("--blame", help="Try each rewritten weight alone in the original model; slow.")
    ] = False,
    limit: LimitOption = None,
    report: ReportOption = None,
    as_json: Json = False,
) -> None:
    """Run models on the same tokens, random ones by default, and measure how far each is from the reference.

    With several candidates, the JSON object holds them as a list under `candidates`.
    """
    limits = measure.parse_limits(limit or ())
    options = measuring.TokenOptions(tokens=tokens, text=text, tokenizer=tokenizer, window=window, windows=windows)
    chosen = measuring.read_tokens(options, reference)
    original = measuring.model_file(reference)
    files = [measuring.model_file(candidate, original) for candidate in candidates]
    if report is not None:
        building.check_path(report)
    watch = progress.progress()
    try:
        found = measuring.measure(
            original, files, chosen, limits, watch, trace=trace or report is not None, blame=blame
        )
        if report is not None:
            building.build_page(report, original, files, found)
    finally:
        watch.finish()
    if as_json:
        objects = [each.to_json() for each in found]
        _print_json(objects[0] if len(objects) == 1 else {"candidates": objects})
    else:
        comparison.show_measured(found, trace=trace)
    if any(each.exceeded for each in found):
        raise typer.Exit(1)


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="The ONNX file, or its folder, that is to be quantized.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The calibration file to write, an .npz.")],
    text: Annotated[Path | None, typer.Option(help="A text in UTF-8; by default a bundled one of many kinds.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The text's tokenizer.json; by default the one beside MODEL.")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token ids in a text's place, a .npy file of integers.")] = None,
    hessians: Annotated[bool, typer.Option("--hessians", help="Also what gptq and gptaq need: a larger file.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Run a model on a text and note what its weights are multiplied by, for `quantize` to weigh errors with."""
    file = measuring.model_file(model)
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
        advice = spelling.nearest(name, tuple(registry.PASSES))
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
        advice = spelling.nearest(name, recipes.names())
        raise UsageError(f"no recipe is called {name!r}{advice or '; `onnx-tailor recipes` lists them'}")
    if as_json:
        shown = [name] if name else recipes.names()
        _print_json({"recipes": [_recipe_json(each) for each in shown]})
    elif name:
        typer.echo(recipes.path(name).read_text(encoding="utf-8"), nl=False)
    else:
        listing.show_recipes()


@app.command()
def init(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or a folder of them.")],
    *,
    target: Annotated[TargetName, typer.Option(help="What will run the model.")] = TargetName.cpu,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The YAML file to write.")] = None,
    as_json: Json = False,
) -> None:
    """Look at a model and write the recipe that fits it, with the reasons as comments."""
    if output is not None and output.exists():
        raise UsageError(f"{output} exists already; give another file, or remove it")
    text = recommendation.recommend(model, target.value)
    if output is not None:
        output.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {output}", err=True)
    if as_json:
        _print_json({"recipe": text, "file": str(output) if output else None})
    elif output is None:
        typer.echo(text, nl=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for an editor: onnx-tailor schema > recipe.schema.json."""
    _print_json(schemas.schema())


def main() -> None:
    """Run the command line; the entry point of the `onnx-tailor` script."""
    signal.signal(signal.SIGTERM, _terminate)
    start()
    app(prog_name="onnx-tailor")


def _terminate(*_: object) -> None:
    """Answer SIGTERM as Ctrl-C is answered: leave what can be resumed, and nothing half-written."""
    raise Terminated


def _recipe_json(name: str) -> dict[str, str]:
    """Return what `recipes --json` says about one recipe."""
    text = recipes.path(name).read_text(encoding="utf-8")
    return {"name": name, "summary": recipes.summary(name), "text": text}


def _print_json(value: dict[str, Any]) -> None:
    """Print the one object of standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
