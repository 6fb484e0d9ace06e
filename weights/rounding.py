"""Whether a float weight is the one that quantized codes were made of, element by element, in tiles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant.quantize import unpack
from onnx_tailor.weights.pool import workers
from onnx_tailor.weights.view import Window


@dataclass(frozen=True)
class BlockViews:
    """A quantized weight [V, K] in a file, as MatMulNBits reads it."""

    codes: Window
    """uint8 [V, blocks, block_size*bits/8]"""
    scales: Window
    """[V, blocks]"""
    zero_points: Window | None
    """uint8 [V, ceil(blocks*bits/8)]"""
    bits: int
    columns: int
    """K, without padding."""


@dataclass(frozen=True)
class Rounding:
    """How a float weight lies on the grid of a quantized one. A step is the distance of neighbouring codes."""

    elements: int
    misses: int
    """Elements whose stored code is not the nearest of their block's."""
    worst: float
    """The largest distance in steps from an element to its code's value; NaN counts as infinite."""
    where: tuple[int, int]
    """Row and column of the worst element."""
    clipped: int
    """Elements beyond the end of their block's grid, whose code is that end."""

    @property
    def same(self) -> bool:
        """Whether every element has the code that rounding gives it."""
        return self.misses == 0


def compare_rounding(weight: Window, quantized: BlockViews) -> Rounding:
    """Compare a float weight [V, K] with codes: each code must be the nearest of its block's grid.

    Round-to-nearest, k-quant and their like differ in how they choose scale and zero point, and all give each element
    its nearest code then, so the answer does not depend on which of them was used. Half a step is the rounding itself;
    added to it is what the types of weight and scale could have moved, `2^bits` steps times their relative precision.
    An element beyond its grid's end passes if the end is its code and it is no further away than half the grid.
    """
    slack = 1e-3 + (1 << quantized.bits) * (_precision(weight) + _precision(quantized.scales))
    with ThreadPoolExecutor(workers()) as pool:
        return _sum(list(pool.map(lambda tile: _tile(weight, quantized, tile, 0.5 + slack), weight.tiles())))


def _precision(view: Window) -> float:
    """Return the largest relative error of storing a number in the view's type."""
    digits = {4: 24, 2: 11}[int(view.dtype.itemsize)] if str(view.dtype) != "BFLOAT16" else 8
    return float(2.0**-digits)


def _tile(weight: Window, quantized: BlockViews, tile: tuple[int, int], half: float) -> Rounding:
    bits, top = quantized.bits, (1 << quantized.bits) - 1
    x = weight.rows(*tile).read().astype(np.float32)
    scales = quantized.scales.rows(*tile).read().astype(np.float32)
    packed = quantized.codes.rows(*tile).read().view(np.uint8)
    rows, blocks = scales.shape
    codes = unpack(packed.reshape(rows, -1), bits).reshape(rows, blocks, -1)
    zeros: npt.NDArray[np.float32] = np.full((rows, blocks), 1 << bits - 1, np.float32)
    if quantized.zero_points is not None:
        zeros = unpack(quantized.zero_points.rows(*tile).read().view(np.uint8), bits)[:, :blocks].astype(np.float32)
    block = codes.shape[2]
    columns = np.arange(quantized.columns) // block
    codes = codes.reshape(rows, -1)[:, : quantized.columns]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        position = x / scales[:, columns]
    position[(x == 0) & (scales[:, columns] == 0)] = 0
    beyond = position + zeros[:, columns] - codes
    distance = np.abs(beyond)
    distance[np.isnan(distance)] = np.inf
    ends = ((codes == 0) & (beyond < 0)) | ((codes == top) & (beyond > 0))
    clipped = ends & (distance > half) & (distance <= 1 << bits - 1)
    at = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return Rounding(
        x.size,
        int(((distance > half) & ~clipped).sum()),
        float(distance[at]),
        (tile[0] + int(at[0]), int(at[1])),
        int(clipped.sum()),
    )


def _sum(parts: list[Rounding]) -> Rounding:
    worst = max(parts, key=lambda part: part.worst)
    return Rounding(
        sum(part.elements for part in parts),
        sum(part.misses for part in parts),
        worst.worst,
        worst.where,
        sum(part.clipped for part in parts),
    )
