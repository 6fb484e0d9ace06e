"""Quantized weights, known by shape before they are computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace

import numpy as np
import numpy.typing as npt

from onnx_tailor.errors import ModelError
from onnx_tailor.quant import BlockFormat, ErrorSums, Method, NonFiniteError, Quantized, gptq, quantize
from onnx_tailor.weights import bands
from onnx_tailor.weights.corrections import corrections
from onnx_tailor.weights.factors import SharedFactor
from onnx_tailor.weights.jobs import WORK, Piece
from onnx_tailor.weights.view import Window


class ErrorLog:
    """Collects the error sums of a job's tiles from any thread; adds them in the tiles' order, so always the same."""

    def __init__(self) -> None:
        """Begin with no tile."""
        self._lock = threading.Lock()
        self._tiles: dict[tuple[int, int], ErrorSums] = {}

    def __reduce__(self) -> tuple[type[ErrorLog], tuple[()]]:
        """Begin anew on another machine, which sends back what it measures."""
        return ErrorLog, ()

    def record(self, tile: tuple[int, int], sums: ErrorSums) -> None:
        """Note a tile's sums; a tile that is computed again counts once."""
        with self._lock:
            self._tiles[tile] = sums

    def of(self, tile: tuple[int, int]) -> ErrorSums:
        """Return the sums of a tile that was recorded."""
        with self._lock:
            return self._tiles[tile]

    def covers(self, tiles: Sequence[tuple[int, int]]) -> bool:
        """Whether every one of `tiles` was computed, here or in the run that this one resumes."""
        with self._lock:
            return all(tile in self._tiles for tile in tiles)

    def total(self) -> ErrorSums:
        """Return the sums over all tiles that were computed."""
        with self._lock:
            return sum((self._tiles[tile] for tile in sorted(self._tiles)), ErrorSums())


@dataclass(frozen=True, eq=False)
class Importance:
    """What an error in each column of a weight costs. Equal to itself alone, so that jobs compare quickly."""

    columns: npt.NDArray[np.float32]
    """[K], at least zero."""


@dataclass(frozen=True)
class QuantizeJob:
    """Quantizes a matrix [N, K] in blocks along K.

    Outputs: `codes` [N, blocks, block_size*bits/8] uint8; `scales` [N, blocks]; `zero_points`
    [N, ceil(blocks*bits/8)] uint8, absent when symmetric, or floats [N, blocks] of the scales' type; `corrections`
    [N, blocks]: (2^(bits-1) - zero point) * scale, of integer zero points alone.
    """

    view: Window
    format: BlockFormat
    method: Method
    name: str = field(compare=False)
    """The weight's name, for messages."""
    importance: Importance | None = None
    """What an error in each column costs `k_quant`; without it rms(block) + |x|."""
    factor: SharedFactor | None = None
    """The second moments of the inputs, which `gptq` needs."""
    remark: str = field(default="", compare=False)
    """Why this is not the method asked for, or what its data are worth; for the report."""
    errors: ErrorLog = field(default_factory=ErrorLog, compare=False, repr=False)
    """How far the stored values are from the weights; complete once every tile of this job was computed."""

    @property
    def label(self) -> str:
        """The method's name in a recipe: k_quant with importance is imatrix, gptq of drifting inputs gptaq."""
        if self.factor is not None and self.factor.drifts:
            return "gptaq"
        return "imatrix" if self.method == "k_quant" and self.importance is not None else self.method

    @property
    def outputs(self) -> Mapping[str, int]:
        """Bytes of each output."""
        rows, columns = self.view.shape
        blocks = self.format.blocks(columns)
        scale_bytes = rows * blocks * self.format.dtype.itemsize
        sizes = {"codes": rows * blocks * self.format.blob_bytes, "scales": scale_bytes}
        if not self.format.symmetric:
            sizes["zero_points"] = rows * self.format.zero_point_row_bytes(columns)
        if not (self.format.symmetric or self.format.float_points):
            sizes["corrections"] = scale_bytes
        return sizes

    @property
    def read_bytes(self) -> int:
        """Bytes of the float weight."""
        return self.view.nbytes

    def tiles(self) -> list[tuple[int, int]]:
        """Return ranges of rows."""
        if self._by_bands:
            return bands.tiles(self.view, self.format, sum(self.outputs.values()))
        return self.view.tiles()

    def work_bytes(self, tile: tuple[int, int]) -> int:
        """Return about how many bytes are in memory while `tile` is computed."""
        part = self.view.rows(*tile)
        first, *others = self._bands(part)
        results = sum(self.outputs.values()) * part.shape[0] // self.view.shape[0] if others else 0
        return WORK * bands.band(part, *first).nbytes + results

    def rows(self, start: int, stop: int) -> QuantizeJob:
        """Return the job for the rows `start` to `stop`: every row is quantized by itself, so its bits are the same."""
        return replace(self, view=self.view.rows(start, stop), errors=ErrorLog())

    def compute(self, tile: tuple[int, int], wanted: frozenset[str]) -> Iterator[Piece]:
        """Quantize the rows of one tile.

        Raises:
            ModelError: the weight holds a NaN or an infinity.
        """
        result = self.quantized(tile)
        for output, array in self._arrays(result, wanted).items():
            yield output, tile[0] * (array.nbytes // len(array)), array

    def quantized(self, tile: tuple[int, int]) -> Quantized:
        """Return the rows of one tile, and note how far they are from the weights.

        Raises:
            ModelError: the weight holds a NaN or an infinity.
        """
        parts = self.banded(tile)
        if not self._by_bands:
            ((_, whole),) = parts
            return whole
        return bands.joined(parts, tile[1] - tile[0], self.view.shape[1], self.format)

    def banded(self, tile: tuple[int, int]) -> Iterator[tuple[tuple[int, int], Quantized]]:
        """Yield bands of the rows of one tile, with their columns (start, stop); then note how far they are off.

        Raises:
            ModelError: the weight holds a NaN or an infinity.
        """
        part, sums = self.view.rows(*tile), ErrorSums()
        for start, stop in self._bands(part):
            try:
                result = self._quantized(bands.band(part, start, stop).read(), start)
            except NonFiniteError as error:
                raise ModelError(
                    f"weight {self.name}: holds {error.value} at row {tile[0] + error.row}, column "
                    f"{start + error.column}, which no quantized value can stand for; leave it in float with "
                    "`nodes: {NAME: skip}`"
                ) from error
            sums += result.sums
            yield (start, stop), result
        self.errors.record(tile, sums)

    def _bands(self, part: Window) -> list[tuple[int, int]]:
        """Return the ranges of columns in which the rows of a tile are read."""
        return bands.bands(part, self.format) if self._by_bands else [(0, part.shape[1])]

    @property
    def _by_bands(self) -> bool:
        """Whether bands of columns are read; `gptq` needs all columns at once."""
        return self.view.turned and self.factor is None

    def measured(self, tile: tuple[int, int]) -> tuple[float, ...]:
        """Return the error sums of a tile that was computed."""
        return astuple(self.errors.of(tile))

    def recall(self, tile: tuple[int, int], measured: tuple[float, ...]) -> None:
        """Take over the error sums of a tile that an earlier run computed."""
        self.errors.record(tile, ErrorSums(*measured))

    def _quantized(self, values: npt.NDArray[np.generic], first: int) -> Quantized:
        """Quantize columns from `first` on."""
        importance = self.importance.columns[first : first + values.shape[1]] if self.importance else None
        if self.factor is None:
            return quantize(values, self.format, self.method, importance)
        assert importance is not None
        return gptq(values, self.format, self.factor.get(), importance)

    def _arrays(self, result: Quantized, wanted: frozenset[str]) -> dict[str, np.ndarray]:
        arrays = {"codes": result.codes, "scales": result.scales}
        if result.zero_points is not None:
            arrays["zero_points"] = result.zero_points
            if "corrections" in wanted:
                arrays["corrections"] = corrections(result.scales, result.zero_points.view(np.uint8), self.format.bits)
        return {name: np.ascontiguousarray(array) for name, array in arrays.items() if name in wanted}
