"""Weights a second that a kernel alone quantizes in memory: onnx-tailor's, ONNX Runtime's, and llama.cpp's on request.

Each round runs all of them in turn, so that what else the machine does meets them alike; the best of all rounds counts.
onnx-tailor works on all processors; beside that stands its figure for one, which is what the others use.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor, quant_tensor_k_quant_cpu

from onnx_tailor.quant import BlockFormat, Method, quantize
from onnx_tailor.weights.pool import workers

_FORMAT = BlockFormat(4, 32, symmetric=False, scale_dtype="float32")
_GGML_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q4_K": 12}
"""ggml_type in ggml.h."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The best of all rounds, 4 bits in blocks of 32 (llama.cpp's Q4_K: eight such blocks together)."""

    name: str
    weights_per_second: float
    """By the clock."""
    weights_per_cpu_second: float
    """By the time that one processor worked, which other work on the machine stretches less."""


def main() -> None:
    """Print a table, or JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--ggml", type=Path, help="llama.cpp's libggml-base, such as packages bring it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds, options.ggml)
    if options.json:
        print(json.dumps([asdict(each) for each in found]))
        return
    print(f"{'kernel alone':24}{'M weights/s':>16}{'M weights/CPU s':>17}")
    for each in found:
        print(f"{each.name:24}{each.weights_per_second / 1e6:16.1f}{each.weights_per_cpu_second / 1e6:17.1f}")


def measure(rounds: int, ggml: Path | None) -> list[Kernel]:
    """Run all kernels in every round."""
    tile = (np.random.default_rng(0).standard_normal((512, 2048)) * 0.02).astype(np.float32)
    flat = tile.reshape(-1, _FORMAT.block_size)
    count = 4 * workers()

    def ours(method: Method) -> Callable[[], object]:
        return lambda: list(pool.map(lambda _: quantize(tile, _FORMAT, method), range(count)))

    with ThreadPoolExecutor(workers()) as pool:
        work: dict[str, tuple[Callable[[], object], int]] = {
            "onnx-tailor rtn": (ours("rtn"), count),
            "onnxruntime rtn": (lambda: quant_tensor(flat, 4, 32, "asym", "uint"), 1),
            "onnx-tailor k_quant": (ours("k_quant"), count),
            "onnxruntime k_quant": (lambda: quant_tensor_k_quant_cpu(flat, 4, 32), 1),
        }
        if ggml is not None:
            work |= {f"llama.cpp {name}": (call, 1) for name, call in _ggml(ggml, tile).items()}
        best = dict.fromkeys(work, (0.0, 0.0))
        for call, _ in work.values():
            call()
        for _ in range(rounds):
            for name, (call, tiles) in work.items():
                wall, cpu = time.perf_counter(), time.process_time()
                call()
                seconds = time.perf_counter() - wall, time.process_time() - cpu
                rates = [tiles * tile.size / each for each in seconds]
                best[name] = max(best[name][0], rates[0]), max(best[name][1], rates[1])
    return [Kernel(name=name, weights_per_second=w, weights_per_cpu_second=c) for name, (w, c) in best.items()]


def _ggml(library: Path, tile: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return calls of llama.cpp's own quantizers on the tile."""
    lib = ctypes.CDLL(str(library))
    run = lib.ggml_quantize_chunk  # type, source, destination, first weight, rows, weights a row, importance
    run.restype = ctypes.c_size_t
    run.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    out = np.empty(tile.nbytes, np.uint8)

    def call(kind: int) -> Callable[[], object]:
        lib.ggml_quantize_init(kind)
        return lambda: run(kind, tile.ctypes.data, out.ctypes.data, 0, *tile.shape, None)

    return {name: call(kind) for name, kind in _GGML_TYPES.items()}


if __name__ == "__main__":
    main()
