"""From a model and tokens to a calibration file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_tailor import __version__
from onnx_tailor.calibration.capture import capture, groups
from onnx_tailor.calibration.file import writing
from onnx_tailor.calibration.inputs import find_inputs, fingerprint
from onnx_tailor.errors import ModelError
from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.candidates import Candidate, find_candidates
from onnx_tailor.progress import Progress, Silent
from onnx_tailor.verify.tokens import Tokens
from onnx_tailor.weights.view import Window

MEMORY = 2 << 30
"""Bytes of Hessians that are summed at once; a model with more of them runs several times."""


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """What was gathered."""

    model: str
    out: str
    source: str
    random: bool
    """Whether the tokens were drawn at random, which is worse than any text."""
    tokens: int
    inputs: int
    hessians: bool
    runs: int
    """Times that the model went over the tokens."""
    file_bytes: int
    skipped: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as `--json` prints it."""
        return asdict(self)


def calibrate(
    path: Path,
    out: Path,
    tokens: Tokens,
    *,
    hessians: bool = False,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Run the ONNX file at `path` on `tokens` and write into `out` what its projections read.

    Raises:
        ModelError: the model cannot be read or run, has no projection to watch, or yields NaN.
        UsageError: `out` cannot be written.
    """
    model = load(path)
    candidates = find_candidates(model)
    inputs, skips = find_inputs(model, candidates)
    if not inputs and not skips:
        raise ModelError(f"{path}: no projection with a float weight was found; there is nothing to calibrate")
    planned = list(groups(inputs, memory if hessians else sys.maxsize))
    watch = progress or Silent()
    entries: list[dict[str, Any]] = []
    with writing(out) as file:
        watch.start("watching activations", tokens.windows.size * 4 * sum(each.columns for each in inputs))
        for group in planned:
            for each, sums in zip(group, capture(path, group, tokens, hessians=hessians, progress=watch), strict=True):
                number = len(entries)
                file.add(f"{number}.mean_square", sums.mean_square())
                if hessians:
                    file.add(f"{number}.hessian", sums.mean_hessian())
                entries.append(
                    {"name": each.name, "columns": each.columns, "count": sums.count, "weights": each.weights}
                )
        file.add("tokens", tokens.windows)
        file.add("token_counts", np.bincount(tokens.windows.reshape(-1)).astype(np.int64))
        skipped = {skip.details["activation"]: skip.reason for skip in skips}
        file.header(_header(path, candidates, tokens, entries, skipped, hessians=hessians))
        watch.finish()
    return CalibrationReport(
        model=str(path),
        out=str(out),
        source=tokens.source,
        random=tokens.random,
        tokens=int(tokens.windows.size),
        inputs=len(inputs),
        hessians=hessians,
        runs=len(planned),
        file_bytes=out.stat().st_size,
        skipped={skip.where: skip.reason for skip in skips},
    )


def without_statistics(path: Path, out: Path, reason: str) -> None:
    """Write into `out` that nothing is known of the inputs of the projections of the ONNX file at `path`, and why.

    Raises:
        ModelError: the model cannot be read.
        UsageError: `out` cannot be written.
    """
    candidates = find_candidates(load(path))
    inputs = [projection.activation.name or "" for each in candidates for projection in each.projections]
    none = Tokens(np.zeros((1, 2), np.int64), "no tokens")  # a window of two is the least
    with writing(out) as file:
        file.header(_header(path, candidates, none, [], dict.fromkeys(inputs, reason), hessians=False))


def _header(
    path: Path,
    candidates: Sequence[Candidate],
    tokens: Tokens,
    entries: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
    *,
    hessians: bool,
) -> dict[str, Any]:
    named: dict[str, list[Window]] = {}  # the branches of an If may have weights of one name
    for each in candidates:
        named.setdefault(each.matrix.name, []).append(each.matrix.view)
    return {
        "version": __version__,
        "model": path.name,
        "source": tokens.source,
        "random": tokens.random,
        "tokens": int(tokens.windows.size),
        "hessians": hessians,
        "inputs": entries,
        "weights": {name: fingerprint(views[0]) for name, views in named.items() if len(views) == 1},
        "skipped": skipped,
    }
