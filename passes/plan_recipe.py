"""Write what `bits: auto` chose as a recipe that needs no measurement."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_tailor.errors import OptionError
from onnx_tailor.passes.plain import plain
from onnx_tailor.passes.selectors import NodeRule, Setting

if TYPE_CHECKING:
    from onnx_tailor.passes.base import Circumstances, Pass
    from onnx_tailor.passes.quantize import Quantize

_OURS = "# Chosen by `bits: auto`"
_HEADER = _OURS + " with {goal}. Edit it, or run it again without measuring.\n"


def require_writable(path: str, circumstances: Circumstances) -> None:
    """See, before anything is measured, that the plan can be written: never in the place of another file.

    Raises:
        OptionError: it cannot.
    """
    for each in (*circumstances.before, *circumstances.after):
        try:
            _item(each)
        except TypeError as error:
            raise OptionError(f"no plan can hold the pass {each.name}: {error}", key=("plan",)) from error
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            ours = file.read(len(_OURS)) == _OURS
    except FileNotFoundError:
        if not Path(path).absolute().parent.is_dir():
            raise OptionError(f"plan {path}: there is no folder {Path(path).parent}", key=("plan",)) from None
        return
    except OSError as error:
        raise OptionError(f"plan {path}: cannot be written ({error.strerror or error})", key=("plan",)) from error
    if not ours:
        raise OptionError(f"plan {path}: exists already and is no plan; give another name", key=("plan",))


def write_plan(
    path: str, options: Quantize, goal: str, circumstances: Circumstances, *, keep_calibration: bool
) -> None:
    """Write the recipe that is run with `options` in the place of what chose them, as YAML to `path`."""
    calibration = options.calibration if keep_calibration else None
    lines = [
        _HEADER.format(goal=goal) + "recipe: 1",
        f"target: {circumstances.target.name}",
        "passes:",
        *map(_item, circumstances.before),
        *_quantize(replace(options, calibration=calibration)),
        *map(_item, circumstances.after),
    ]
    Path(path).write_text("\n".join([*lines, ""]), encoding="utf-8")


def _item(pass_: Pass) -> str:
    paths = {each.name: getattr(pass_, each.name) for each in fields(pass_)}
    found = {name: path.resolve() for name, path in paths.items() if isinstance(path, Path)}
    options = plain(replace(pass_, **found))
    return f"  - {pass_.name}" + (f": {json.dumps(options)}" if options else "")


def _quantize(options: Quantize) -> list[str]:
    lines = [
        "  - quantize:",
        f"      method: {options.method}",
        f"      block_size: {options.block_size}",
        f"      symmetric: {json.dumps(options.symmetric)}",
        f"      zero_points: {options.zero_points}",
        f"      scales: {options.scales or 'model'}",
        f"      format: {options.format}",
        f"      embeddings: {json.dumps(options.embeddings)}",
    ]
    if options.calibration is not None:
        lines.append(f"      calibration: {json.dumps(str(options.calibration.resolve()))}")
    if options.accuracy_level is not None:
        lines.append(f"      accuracy_level: {options.accuracy_level}")
    lines.append("      nodes:")
    return [*lines, *(f"        {json.dumps(name)}: {_text(setting)}" for name, setting in options.nodes.items())]


def _text(setting: Setting | NodeRule) -> str:
    if not isinstance(setting, NodeRule):
        return str(setting)
    given = {name: value for name, value in vars(setting).items() if value is not None}
    return str(given["bits"]) if set(given) == {"bits"} else json.dumps(given)
