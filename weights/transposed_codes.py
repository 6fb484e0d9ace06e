"""Quantized weights as DequantizeLinear takes them in front of a MatMul: [K, N], blocks along the first axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant.order import row_major
from onnx_tailor.quant.packing import transpose
from onnx_tailor.weights.jobs import Piece
from onnx_tailor.weights.quantize_job import QuantizeJob


@dataclass(frozen=True)
class TransposedCodes:
    """What `job` computes for [N, K], stored for [K, N]; N weights, and N zero points, must fill whole bytes.

    Outputs: `codes` [K, N], 8/bits of them a byte, the first in the lowest bits; `scales` [blocks, N]; `zero_points`
    [blocks, N], packed likewise, absent when symmetric. Codes of a symmetric weight are signed: 2^(bits-1) less.
    """

    job: QuantizeJob

    @property
    def outputs(self) -> Mapping[str, int]:
        """Bytes of each output."""
        (rows, columns), fmt = self.job.view.shape, self.job.format
        blocks = fmt.blocks(columns)
        sizes = {
            "codes": columns * rows * fmt.bits // 8,
            "scales": blocks * rows * fmt.dtype.itemsize,
        }
        if not fmt.symmetric:
            sizes["zero_points"] = blocks * rows * fmt.bits // 8
        return sizes

    @property
    def read_bytes(self) -> int:
        """Bytes of the float weight."""
        return self.job.read_bytes

    def tiles(self) -> list[tuple[int, int]]:
        """Return ranges of rows that begin on whole bytes."""
        each = 8 // self.job.format.bits
        starts = sorted({start - start % each for start, _ in self.job.tiles()})
        return list(zip(starts, [*starts[1:], self.job.view.shape[0]], strict=True))

    def compute(self, tile: tuple[int, int], wanted: frozenset[str]) -> Iterator[Piece]:
        """Quantize the rows of one tile, which are columns here.

        Raises:
            ModelError: the weight holds a NaN or an infinity.
        """
        fmt = self.job.format
        for (start, stop), result in self.job.banded(tile):
            packed = result.codes.reshape(len(result.codes), -1)
            codes = transpose(packed ^ _middles(fmt.bits) if fmt.symmetric else packed, fmt.bits)[: stop - start]
            parts: dict[str, npt.NDArray[np.generic]] = {"scales": row_major(result.scales.T), "codes": codes}
            if result.zero_points is not None:
                parts["zero_points"] = transpose(result.zero_points.view(np.uint8), fmt.bits)[: result.scales.shape[1]]
            for output, array in parts.items():
                if output in wanted:
                    first = start if output == "codes" else start // fmt.block_size
                    yield from self._lines(output, array, tile, first)

    def _lines(self, output: str, array: npt.NDArray[np.generic], tile: tuple[int, int], first: int) -> Iterator[Piece]:
        """Yield a part of each of the output's rows from `first` on; one piece where the tile is all of the weight."""
        rows, columns = self.job.view.shape
        line = self.outputs[output] // (columns if output == "codes" else self.job.format.blocks(columns))
        if tile == (0, rows):
            yield output, first * line, array
            return
        start = tile[0] * line // rows
        for number, part in enumerate(array, first):
            yield output, number * line + start, part

    def work_bytes(self, tile: tuple[int, int]) -> int:
        """Return about how many bytes are in memory while `tile` is computed."""
        return self.job.work_bytes(tile)

    def measured(self, tile: tuple[int, int]) -> tuple[float, ...]:
        """Return the error sums of a tile that was computed."""
        return self.job.measured(tile)

    def recall(self, tile: tuple[int, int], measured: tuple[float, ...]) -> None:
        """Take over the error sums of a tile that an earlier run computed."""
        self.job.recall(tile, measured)


def _middles(bits: int) -> np.uint8:
    """Return a byte full of the codes that stand for zero in a symmetric weight."""
    return np.uint8(0xFF // ((1 << bits) - 1) << bits - 1)
