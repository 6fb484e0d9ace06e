"""How a quantized weight is laid out, as MatMulNBits and GatherBlockQuantized read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

Bits = Literal[2, 4, 8]
Method = Literal["rtn", "k_quant", "gptq"]
ScaleType = Literal["float32", "float16", "bfloat16"]

FLOAT_POINT_BITS = (2, 4)
"""Bits with which MatMulNBits takes float zero points: its CPU kernel fails on those of 8 bits (measured with 1.31)."""
SCALE_TYPES: dict[str, np.dtype[np.generic]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class BlockFormat:
    """Blocks of `block_size` weights along the input dimension share one scale and one zero point."""

    bits: Bits
    block_size: int
    """A power of two from 16 on."""
    symmetric: bool
    """No zero points are stored: 2^(bits-1) stands for zero."""
    scale_dtype: str
    """float32, float16 or bfloat16: the type in which scales are stored."""
    float_points: bool = False
    """Zero points are floats of the scales' type, which MatMulNBits takes and no operator that gathers rows."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value that the operators do not take.
        """
        if self.bits not in {2, 4, 8}:
            raise ValueError(f"bits must be 2, 4 or 8, not {self.bits}")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two from 16 on, not {self.block_size}")
        if self.scale_dtype not in SCALE_TYPES:
            raise ValueError(f"scale_dtype must be one of {', '.join(SCALE_TYPES)}, not {self.scale_dtype}")
        if self.float_points and (self.symmetric or self.bits not in FLOAT_POINT_BITS):
            raise ValueError("float zero points are for 2 and 4 bits, and symmetric grids have none")

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy type of the scales."""
        return SCALE_TYPES[self.scale_dtype]

    def blocks(self, k: int) -> int:
        """Return the number of blocks in a row of `k` weights; the last may be padded."""
        return -(-k // self.block_size)

    @property
    def blob_bytes(self) -> int:
        """Bytes of the codes of one block."""
        return self.block_size * self.bits // 8

    def zero_point_row_bytes(self, k: int) -> int:
        """Return the bytes of one row's zero points: floats, or integers packed along the row's blocks."""
        if self.float_points:
            return self.blocks(k) * self.dtype.itemsize
        return -(-self.blocks(k) * self.bits // 8)


@dataclass(frozen=True)
class ErrorSums:
    """What rounding did to some weights, in sums that add up over parts of a tensor."""

    squared_error: float = 0.0
    """Sum of (stored value - weight)^2."""
    squared_weight: float = 0.0
    """Sum of weight^2."""

    def __add__(self, other: ErrorSums) -> ErrorSums:
        """Return the sums over both parts."""
        return ErrorSums(self.squared_error + other.squared_error, self.squared_weight + other.squared_weight)

    @property
    def relative_error(self) -> float:
        """Root of squared error / squared weight; 0 where both are 0."""
        if self.squared_weight == 0:
            return 0.0 if self.squared_error == 0 else math.inf
        return math.sqrt(self.squared_error / self.squared_weight)

    @property
    def signal_to_noise_db(self) -> float:
        """Decibels of the weights above their error; infinite where there is no error."""
        relative = self.relative_error
        if relative == 0:
            return math.inf
        return -math.inf if math.isinf(relative) else -20 * math.log10(relative)


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix [rows, K]. Its value is (code - zero point) * scale; see `dequantize`."""

    codes: npt.NDArray[np.uint8]
    """[rows, blocks, block_size*bits/8]; code i lies in byte i*bits//8 at bit (i*bits) % 8."""
    scales: npt.NDArray[np.generic]
    """[rows, blocks]"""
    zero_points: npt.NDArray[np.generic] | None
    """uint8 [rows, ceil(blocks*bits/8)], packed as the codes are, or floats [rows, blocks] of the scales' type; None
    when symmetric."""
    sums: ErrorSums
    """How far the values are from the weights."""


class NonFiniteError(ValueError):
    """The weight holds a NaN or an infinity, which no code can stand for."""

    def __init__(self, row: int, column: int, value: float) -> None:
        """Say where."""
        super().__init__(f"{value} at row {row}, column {column}")
        self.row = row
        self.column = column
        self.value = value
