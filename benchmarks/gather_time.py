"""Time of one row, of a prompt's and of one whole token, in each layout of a quantized table against `alias`.

One process measures all layouts in turns, so that a busy machine slows them alike; the figures are ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import memory

LAYOUTS = ("alias", "plain", "correction", "shared")


def main() -> None:
    """Print microseconds and ratios for 4 and 8 bits."""
    import onnxruntime as ort

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt, of which the rows alone are taken")
    parser.add_argument("--repeat", type=int, default=400)
    options = parser.parse_args()
    print(
        f"onnxruntime {ort.__version__}, {options.rows} x {options.columns}, one thread; microseconds, median and least"
    )
    for bits in (4, 8):
        with tempfile.TemporaryDirectory(prefix="onnx-tailor-gather-") as scratch:
            folder = Path(scratch)
            source = memory.quantized(folder / "source", bits, options.rows, options.columns, table=True)
            sessions = {}
            for layout in LAYOUTS if bits == 8 else LAYOUTS[:3]:
                settings = ort.SessionOptions()
                settings.intra_op_num_threads = 1
                settings.log_severity_level = 3  # the model of the row alone leaves initializers unread
                path = memory.relaid(source, folder / layout, layout)
                for part, outputs in (("row", ["x"]), ("token", ["logits"])):
                    import onnx

                    model = onnx.load(path, load_external_data=False)
                    if part == "row":
                        keep = [n for n in model.graph.node if n.op_type != "MatMulNBits"]
                        del model.graph.node[:], model.graph.output[:]
                        model.graph.node.extend(keep)
                        model.graph.output.append(onnx.helper.make_tensor_value_info("x", 1, None))
                    file = path.with_name(f"{part}.onnx")
                    file.write_bytes(model.SerializeToString())
                    session = ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
                    sessions[layout, part] = (session, outputs)
                sessions[layout, "prompt"] = sessions[layout, "row"]
            times: dict[tuple[str, str], list[float]] = {key: [] for key in sessions}
            for turn in range(options.repeat):
                for key, (session, outputs) in sessions.items():
                    if key[1] != "row" and turn % 20:
                        continue
                    count = options.prompt if key[1] == "prompt" else 1
                    ids = (np.arange(count, dtype=np.int64)[None] + turn) * 61 % options.rows
                    start = time.perf_counter()
                    session.run(outputs, {"ids": ids})
                    times[key].append(time.perf_counter() - start)
            medians = {key: 1e6 * statistics.median(each) for key, each in times.items()}
            for (layout, part), median in sorted(medians.items(), key=lambda item: item[0][1]):
                least = 1e6 * min(times[layout, part])
                ratio = median / medians["alias", part]
                print(f"{bits} bits {part:8}{layout:12}{median:12.1f}{ratio:8.3f}   least {least:10.1f}")


if __name__ == "__main__":
    main()
