"""Corrections: what an asymmetric table adds to the values that a kernel without zero points computes.

(code - zero_point) * scale = (code - 2^(bits-1)) * scale + (2^(bits-1) - zero_point) * scale, up to one rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_tailor.quant.quantize import unpack
from onnx_tailor.weights.jobs import WORK, Piece
from onnx_tailor.weights.view import Window


def corrections(
    scales: npt.NDArray[np.generic], zero_points: npt.NDArray[np.uint8], bits: int
) -> npt.NDArray[np.generic]:
    """Return (2^(bits-1) - zero point) * scale [rows, blocks] in the scales' type."""
    points = unpack(zero_points, bits)[:, : scales.shape[1]].astype(np.float32)
    product: npt.NDArray[np.generic] = ((1 << bits - 1) - points) * scales.astype(np.float32)
    return product.astype(scales.dtype)


@dataclass(frozen=True)
class CorrectionJob:
    """Computes the corrections of a table that was quantized already."""

    scales: Window
    """[rows, blocks]"""
    zero_points: Window
    """[rows, ceil(blocks*bits/8)] uint8"""
    bits: int

    @property
    def outputs(self) -> Mapping[str, int]:
        """One output of the scales' size."""
        return {"corrections": self.scales.nbytes}

    @property
    def read_bytes(self) -> int:
        """Bytes of scales and zero points."""
        return self.scales.nbytes + self.zero_points.nbytes

    def tiles(self) -> list[tuple[int, int]]:
        """Return ranges of rows."""
        return self.scales.tiles()

    def work_bytes(self, tile: tuple[int, int]) -> int:
        """Return about how many bytes are in memory while `tile` is computed."""
        return WORK * (self.scales.rows(*tile).nbytes + self.zero_points.rows(*tile).nbytes)

    def compute(self, tile: tuple[int, int], wanted: frozenset[str]) -> Iterator[Piece]:
        """Compute the corrections of one tile."""
        assert wanted == {"corrections"}
        packed = self.zero_points.rows(*tile).read().view(np.uint8)
        result = np.ascontiguousarray(corrections(self.scales.rows(*tile).read(), packed, self.bits))
        yield "corrections", tile[0] * (result.nbytes // len(result)), result
