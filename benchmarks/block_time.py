"""Print how long MatMulNBits takes on one thread of a CPU by the size of its blocks, in turns in one process."""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

BLOCKS = (16, 32, 64, 128)


def session(size: int, bits: int, block: int, level: int) -> onnxruntime.InferenceSession:
    """Return a product of [m, size] and a random weight [size, size] with zero points."""
    rng, blocks = np.random.default_rng(0), size // block
    weights = {
        "B": rng.integers(0, 256, (size, blocks, block * bits // 8), np.uint8),
        "scales": rng.random((size, blocks), np.float32),
        "zero_points": rng.integers(0, 256, (size, -(-blocks * bits // 8)), np.uint8),
    }
    attributes = {"K": size, "N": size, "bits": bits, "block_size": block, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["A", *weights], ["Y"], domain="com.microsoft", **attributes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", size]) for name in "AY"]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Print a table in Markdown: the best of all rounds, in milliseconds, and against blocks of 32."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    print("| bits | accuracy_level | rows | " + " | ".join(f"blocks of {block}" for block in BLOCKS) + " |")
    print("| --- " * (3 + len(BLOCKS)) + "|")
    for bits in (4, 8):
        for level in (0, 4):
            sessions = {block: session(options.size, bits, block, level) for block in BLOCKS}
            for rows in (1, 256):
                inputs = {"A": np.random.default_rng(1).random((rows, options.size), np.float32)}
                best = dict.fromkeys(BLOCKS, float("inf"))
                for _ in range(options.rounds):
                    for block, runner in sessions.items():
                        started = time.perf_counter()
                        runner.run(None, inputs)
                        best[block] = min(best[block], time.perf_counter() - started)
                cells = [f"{best[block] * 1e3:.2f} ({best[block] / best[32]:.2f})" for block in BLOCKS]
                print(f"| {bits} | {level} | {rows} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
