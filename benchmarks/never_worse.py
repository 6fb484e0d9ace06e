"""Check on every weight of a model that no block is stored worse than plain rounding or ONNX Runtime's search would.

A block's error is the sum of (rms(block) + |x|) * (stored value - x)^2, in float64, with scales in their storage type
and every weight at its nearest code. Exits 1 where ours is above another's by more than float32 can tell.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor, quant_tensor_k_quant_cpu

from onnx_tailor.graph.file.load import load
from onnx_tailor.graph.meaning.candidates import find_candidates
from onnx_tailor.quant import BlockFormat, Quantized, quantize
from onnx_tailor.quant.quantize import unpack
from onnx_tailor.weights.pool import workers
from onnx_tailor.weights.view import View

Floats = npt.NDArray[np.float64]
TOLERANCE = 1e-5
"""Relative. Candidates are judged in float32."""
_PIECE = 1 << 19
"""Weights compared at once."""


@dataclass
class Count:
    """Blocks compared with one contender, and what all of them cost."""

    blocks: int = 0
    worse: int = 0
    """Blocks in which ours has the larger error."""
    worst: float = 0.0
    """The largest ours / theirs - 1 among them."""
    ours: float = 0.0
    theirs: float = 0.0
    """Sums of the blocks' errors."""

    def add(self, ours: Floats, theirs: Floats, squares: Floats) -> None:
        """Count some blocks."""
        worse = ours > theirs * (1 + TOLERANCE) + 1e-12 * squares
        self.blocks += ours.size
        self.worse += int(worse.sum())
        if worse.any():
            self.worst = max(self.worst, float(np.max(ours[worse] / np.maximum(theirs[worse], 1e-300)) - 1))
        self.ours += float(ours.sum())
        self.theirs += float(theirs.sum())


def main() -> None:
    """Print a table, or JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--bits", type=int, choices=[2, 4, 8], default=4)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--scales", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--every", type=int, default=1, help="look at one tile of so many")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    fmt = BlockFormat(options.bits, options.block_size, options.symmetric, options.scales)
    counts = {"plain rounding": Count(), "onnxruntime's k-quant": Count()}
    if fmt.symmetric:
        counts = {"plain rounding": Count(), "onnxruntime's symmetric rounding": Count()}
    with ThreadPoolExecutor(workers()) as pool:
        for ours, squares, *others in pool.map(lambda piece: compare(piece, fmt), pieces(options.model, options.every)):
            for count, theirs in zip(counts.values(), others, strict=True):
                count.add(ours, theirs, squares)
    if options.json:
        print(json.dumps({name: asdict(count) for name, count in counts.items()}))
    else:
        print(f"{'':34}{'blocks':>12}{'worse':>8}{'worst':>10}{'ours / theirs':>15}")
        for name, count in counts.items():
            print(f"{name:34}{count.blocks:12}{count.worse:8}{count.worst:10.2e}{count.ours / count.theirs:15.4f}")
    sys.exit(1 if any(count.worse for count in counts.values()) else 0)


def pieces(model: Path, every: int) -> Iterator[View]:
    """Yield rows of every weight that `quantize` could quantize."""
    for candidate in find_candidates(load(model)):
        view = candidate.matrix.view
        step = max(1, _PIECE // view.shape[1])
        for start in range(0, view.shape[0], step * every):
            yield view.rows(start, min(start + step, view.shape[0]))


def compare(view: View, fmt: BlockFormat) -> tuple[Floats, ...]:
    """Return errors of ours, the weighted squares, the errors of plain rounding and of ONNX Runtime, for each block."""
    weight = view.read().astype(np.float32)
    rows, k = weight.shape
    x = np.zeros((rows, fmt.blocks(k) * fmt.block_size), np.float32)
    x[:, :k] = weight
    x = x.reshape(-1, fmt.block_size)
    wide = x.astype(np.float64)
    cost = np.sqrt(np.mean(wide**2, axis=1, keepdims=True)) + np.abs(wide)
    grids = [_ours(quantize(weight, fmt, "k_quant"), fmt), _rounding(wide, fmt), _onnxruntime(x, fmt)]
    errors = [_error(wide, cost, scale, zero, fmt) for scale, zero in grids]
    return errors[0], np.sum(cost * wide**2, axis=1), *errors[1:]


def _ours(result: Quantized, fmt: BlockFormat) -> tuple[Floats, Floats]:
    scale = result.scales.astype(np.float64)
    if result.zero_points is None:
        return scale.reshape(-1), np.full(scale.size, float(1 << fmt.bits - 1))
    return scale.reshape(-1), unpack(result.zero_points, fmt.bits)[:, : scale.shape[1]].reshape(-1).astype(np.float64)


def _rounding(x: Floats, fmt: BlockFormat) -> tuple[Floats, Floats]:
    """Return the grids that map each block's range, zero included, onto the codes."""
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    half, maxq = 1 << fmt.bits - 1, (1 << fmt.bits) - 1
    if fmt.symmetric:
        return _stored(-np.where(-low > high, low, high) / half, fmt), np.full(len(x), float(half))
    scale = _stored((high - low) / maxq, fmt)
    with np.errstate(all="ignore"):
        return scale, np.nan_to_num(np.clip(np.rint(-low / scale), 0, maxq), nan=half)


def _onnxruntime(x: npt.NDArray[np.float32], fmt: BlockFormat) -> tuple[Floats, Floats]:
    with np.errstate(all="ignore"):
        if fmt.symmetric:
            _, scale, zero = quant_tensor(x, fmt.bits, fmt.block_size, "sym", "uint")
        else:
            _, scale, zero = quant_tensor_k_quant_cpu(x, fmt.bits, fmt.block_size)
    return _stored(scale[:, 0].astype(np.float64), fmt), zero[:, 0].astype(np.float64)


def _stored(scale: Floats, fmt: BlockFormat) -> Floats:
    return scale.astype(fmt.dtype).astype(np.float64)


def _error(x: Floats, cost: Floats, scale: Floats, zero: Floats, fmt: BlockFormat) -> Floats:
    """Return each block's error; a scale of 0 stores nothing but zeros."""
    usable = np.where(scale == 0, 1, scale)[:, None]
    codes = np.clip(np.rint(x / usable), -zero[:, None], (1 << fmt.bits) - 1 - zero[:, None])
    error: Floats = np.sum(cost * (np.where(scale == 0, 0, scale)[:, None] * codes - x) ** 2, axis=1)
    return error


if __name__ == "__main__":
    main()
