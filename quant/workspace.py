"""The memory in which the kernel works on a tile; it allocates nothing itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

WIDTH = 16
"""Blocks that kernels work on at a time: see `lanes`."""


class Workspace(NamedTuple):
    """Room for two groups of WIDTH blocks. Its content means nothing between two calls."""

    floats: npt.NDArray[np.float32]
    """[2, 2, block_size * WIDTH]: weights, and what an error of each costs."""
    words: npt.NDArray[np.uint32]
    """[block_size*bits/32 * WIDTH]: codes."""
    results: npt.NDArray[np.float32]
    """[5 * WIDTH]: what is known of the blocks at the end."""
    spots: npt.NDArray[np.int64]
    """[2, 5, WIDTH]: number, first element, first column, number of weights, and row of each block."""


def workspace(block: int, bits: int) -> Workspace:
    """Return a workspace for blocks of `block` weights and codes of `bits` bits."""
    return Workspace(
        np.empty((2, 2, block * WIDTH), np.float32),
        np.empty(block * bits // 32 * WIDTH, np.uint32),
        np.empty(5 * WIDTH, np.float32),
        np.empty((2, 5, WIDTH), np.int64),
    )
