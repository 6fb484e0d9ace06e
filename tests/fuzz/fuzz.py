"""Mutate models and recipes without end, and hold every command to its promises. Not part of the test suite.

    python tests/fuzz/fuzz.py [--files 100000] [--seed 0] [--seconds 600] [--kind model|recipe] [--keep FOLDER]

A mutated file may be read or refused, but never: an exit status other than 0, 1 or 2, a traceback or an internal error,
an error of more than a few lines, a run above 10 seconds, memory above the bound, an output after a refusal, a changed
input, bytes of a file outside the model's folder in the output. Each finding is kept in FOLDER and belongs into
tests/fuzz/findings, which tests/fuzz/test_findings.py replays.

Everything runs in worker processes, so that a crash of the interpreter is a finding as well.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

LIMIT_SECONDS = 10
LIMIT_BYTES = 1 << 30
SECRET = b"this is a secret of another folder, and no model may hold it " * 64
CHUNK = 50


def main() -> None:
    """Fuzz in worker processes until so many files or seconds are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=("model", "recipe", "both"), default="both")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "onnx-tailor-findings")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    done, statuses, findings, end = 0, collections.Counter[str](), 0, time.monotonic() + options.seconds
    seeds = range(options.seed, options.seed + options.files, CHUNK)
    pool = _pool(options.workers)
    for batch in zip(*[iter(seeds)] * options.workers, strict=False):
        if time.monotonic() > end:
            break
        for seed, future in [(seed, pool.submit(fuzz_chunk, seed, options.kind)) for seed in batch]:
            try:
                found = future.result(timeout=LIMIT_SECONDS * 30)
            except (BrokenProcessPool, TimeoutError) as error:
                found = {"crash": 1, "findings": [{"seed": seed, "what": f"{type(error).__name__} in this chunk"}]}
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _pool(options.workers)
            for finding in found.pop("findings"):  # type: ignore[attr-defined]
                findings += 1
                _keep(options.keep, finding)
            statuses.update(found)  # type: ignore[arg-type]
            done += CHUNK
    print(f"{done} files, seeds {options.seed} to {options.seed + done - 1}:", dict(statuses), f"{findings} findings")
    sys.exit(1 if findings else 0)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_limit)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    os.nice(5)
    try_model(seeds()[0], random.Random(0))  # compiles the kernels, which counts against no mutated file


def _keep(folder: Path, finding: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    print("FINDING", {key: value for key, value in finding.items() if key != "content"}, flush=True)
    content = finding.pop("content", None)
    if isinstance(content, bytes):
        (folder / f"{finding['kind']}-{finding['seed']}").write_bytes(content)
    (folder / f"{finding.get('kind', 'chunk')}-{finding['seed']}.json").write_text(json.dumps(finding))


def fuzz_chunk(seed: int, kind: str) -> dict[str, object]:
    """Mutate and run `CHUNK` files; return counts of the statuses and the findings."""
    counts: collections.Counter[str] = collections.Counter()
    findings = []
    for each in range(seed, seed + CHUNK):
        chosen = ("model" if each % 4 else "recipe") if kind == "both" else kind
        dice = random.Random(each)
        content = mutated_model(dice) if chosen == "model" else mutated_recipe(dice)
        status, what = try_model(content, dice) if chosen == "model" else try_recipe(content)
        counts[f"{chosen} {status}"] += 1
        if what:
            findings.append({"kind": chosen, "seed": each, "what": what, "content": content})
    return {**counts, "findings": findings}


def try_model(content: bytes, dice: random.Random) -> tuple[int, str]:
    """Run the commands on a model; return the exit status and what was wrong, "" for nothing."""
    import handmade

    with tempfile.TemporaryDirectory(prefix="onnx-tailor-fuzz-") as scratch:
        folder, out = Path(scratch) / "in", Path(scratch) / "out"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(content)
        (folder / "model.onnx.data").write_bytes(bytes(range(256)) * 400)
        (Path(scratch) / "secret").write_bytes(SECRET)
        (folder / "link").symlink_to(Path(scratch) / "secret")
        before = handmade.contents(folder)
        commands = [
            ["run", dice.choice(["tie", "rtn", "k-quant-mixed", "tie-table-8bit"]), str(folder / "model.onnx")],
            ["inspect", str(folder / "model.onnx")],
        ]
        commands[0] += ["-o", str(out)]
        for command in commands:
            status, what = call(command)
            if what:
                return status, what
            if status and out.exists():
                return status, "an output after a refusal"
            if out.exists() and any(SECRET[:61] in each for each in handmade.contents(out).values()):
                return status, "bytes of another folder in the output"
            if list(Path(scratch).glob(".out*")):
                return status, "a work folder was left"
        return status, "the input was changed" if handmade.contents(folder) != before else ""


def try_recipe(content: bytes) -> tuple[int, str]:
    """Run a recipe on a sound model, dry; return the exit status and what was wrong."""
    import handmade

    with tempfile.TemporaryDirectory(prefix="onnx-tailor-fuzz-") as scratch:
        recipe = Path(scratch) / "r.yaml"
        recipe.write_bytes(content)
        model = handmade.decoder(Path(scratch) / "in" / "model.onnx", layers=1, columns=32)
        return call(["run", str(recipe), str(model), "--dry-run"])


def call(arguments: list[str]) -> tuple[int, str]:
    """Run a command in this process; return its status and how it broke a promise, "" if it kept all."""
    from typer.testing import CliRunner

    from onnx_tailor.cli import app

    started = time.monotonic()
    result = CliRunner().invoke(app, arguments)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if result.exit_code not in {0, 1, 2} or "Traceback" in result.stderr or "internal error" in result.stderr:
        return result.exit_code, (result.stderr or repr(result.exception))[-3000:]
    if result.exit_code and not result.stderr.strip():
        return result.exit_code, "an error without a word"
    if result.exit_code == 1 and result.stderr.count("error: ") > 5:
        return result.exit_code, f"an error of many lines: {result.stderr[:300]}"
    if seconds > LIMIT_SECONDS:
        return result.exit_code, f"{seconds:.1f} s"
    return result.exit_code, f"{peak} bytes of memory" if peak > LIMIT_BYTES else ""


def seeds() -> list[bytes]:
    """Return sound models to begin with."""
    import handmade
    from onnx import helper, numpy_helper

    outside = handmade.decoder_proto(layers=2)
    offset = 0
    for tensor in outside.graph.initializer:
        length = len(tensor.raw_data)
        handmade.refer(tensor, location="model.onnx.data", offset=offset, length=length)
        offset += length
    nested = handmade.decoder_proto(layers=1)
    inner = handmade.decoder_proto(layers=1, seed=3).graph
    del inner.input[:]
    for node in inner.node:
        node.input[:] = ["input_ids" if each == "input_ids" else each and f"i.{each}" for each in node.input]
        node.output[:] = [f"i.{each}" for each in node.output]
    for tensor in inner.initializer:
        tensor.name = f"i.{tensor.name}"
    inner.output[0].name = "i.logits"
    nested.graph.node.append(helper.make_node("If", ["flag"], ["other"], then_branch=inner, else_branch=inner))
    nested.graph.initializer.append(numpy_helper.from_array(handmade.np.ones((), bool), "flag"))
    models = [handmade.decoder_proto(layers=1), outside, nested, handmade.decoder_proto(dtype=handmade.np.float16)]
    return [model.SerializeToString() for model in models]


_SEEDS: list[bytes] = []
NASTY = [0, 1, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -1, -(2**31), -(2**63)]
TEXTS = ["", "\0", "..", "../secret", "/etc/passwd", "link", "model.onnx", "model.onnx.data", "é" * 300, "h0", "logits"]


def mutated_model(dice: random.Random) -> bytes:
    """Return a model with its bytes or its fields changed in some places."""
    import onnx

    if not _SEEDS:
        _SEEDS.extend(seeds())
    content = dice.choice(_SEEDS)
    if dice.random() < 0.4:
        return _mutated_bytes(content, dice)
    model = onnx.ModelProto.FromString(content)
    for _ in range(dice.choice([1, 1, 2, 3, 8])):
        _mutate(model, dice)
    try:
        return model.SerializeToString()
    except ValueError:  # text that is no UTF-8
        return content


def _mutated_bytes(content: bytes, dice: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(dice.choice([1, 1, 2, 4, 16])):
        at = dice.randrange(len(data)) if data else 0
        if dice.random() < 0.7:  # most bytes are weights, of which any will do: aim at the ends, where the tags are
            at = dice.choice([dice.randrange(0, 400), len(data) - dice.randrange(1, 400)]) % max(1, len(data))
        match dice.randrange(4):
            case 0:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del data[at : at + dice.choice([1, 2, 100, 10_000])]
            case 2:
                data[at:at] = bytes(dice.randrange(256) for _ in range(dice.choice([1, 2, 9])))
            case _:
                data[at:at] = data[: dice.randrange(1, 200)]
    return bytes(data)


def _mutate(message: object, dice: random.Random) -> None:
    """Change one field somewhere below a protobuf message."""
    fields = message.DESCRIPTOR.fields  # type: ignore[attr-defined]
    present = [field for field, _ in message.ListFields()]  # type: ignore[attr-defined]
    field = dice.choice(present if present and dice.random() < 0.9 else fields)
    value = getattr(message, field.name)
    repeated = hasattr(value, "__len__") and not isinstance(value, str | bytes)
    if repeated and len(value):
        match dice.randrange(10):
            case 0:
                del value[dice.randrange(len(value))]
                return
            case 1 if field.message_type:
                value.add().CopyFrom(dice.choice(value))
                return
            case 2:
                value.extend([dice.choice(value)] * dice.choice([1, 3]))
                return
            case 3 if len(value) > 1:
                a, b = dice.randrange(len(value)), dice.randrange(len(value))
                if field.message_type:
                    value[a].CopyFrom(value[b])
                else:
                    value[a] = value[b]
                return
    if field.message_type:
        inner = dice.choice(value) if repeated and len(value) else value.add() if repeated else value
        _mutate(inner, dice)
        return
    try:
        new = _value(field, dice)
        if repeated:
            value[dice.randrange(len(value))] = new if len(value) else value.append(new)
        else:
            setattr(message, field.name, new)
    except (ValueError, TypeError, IndexError):  # outside the field's range
        return


def _value(field: object, dice: random.Random) -> object:
    kind = field.cpp_type  # type: ignore[attr-defined]
    if kind == 9:  # text or bytes
        text = dice.choice(TEXTS)
        return text.encode() if field.type == 12 else text  # type: ignore[attr-defined]
    if kind in {5, 6}:
        return dice.choice([float("nan"), float("inf"), -1.5, 1e38])
    if kind == 8:
        return dice.randrange(30)
    return dice.choice([*NASTY, dice.randrange(200)])


PIECES = [
    "recipe: 1",
    "passes:",
    "- quantize:",
    "nodes:",
    "{bits: 8}",
    "&a",
    "*a",
    "!!python/object:os.system",
    "<<: *a",
    "[",
    "]",
    "{",
    "}",
    "? ",
    "|",
    ">",
    "'",
    '"',
    "---",
    "...",
    "%YAML 1.1",
    "\t",
    "\x00",
    "\ufeff",
    "\u2028",
    "~",
    "true",
    "1e999",
    "0x1",
    "2024-01-01",
    "role:lm_head",
    "*: 4",
    "layers: 0-999999999999",
    "bits: 99999999999999",
    "block_size: 1e9",
    "[[[[[[[[",
    "{a: {a: {a: ",
    "target: cpu",
    "method: k_quant",
    "- tie-embeddings",
]


def mutated_recipe(dice: random.Random) -> bytes:
    """Return a shipped recipe with lines and characters changed."""
    from onnx_tailor import recipes

    lines = recipes.path(dice.choice(recipes.names())).read_text(encoding="utf-8").split("\n")
    for _ in range(dice.choice([1, 2, 4, 8])):
        at = dice.randrange(len(lines))
        indent = " " * dice.choice([0, 2, 4, 6, 8, 10])
        match dice.randrange(5):
            case 0:
                lines[at] = indent + dice.choice(PIECES)
            case 1:
                lines.insert(at, indent + " ".join(dice.choice(PIECES) for _ in range(3)))
            case 2:
                lines[at] = lines[at][: dice.randrange(len(lines[at]) + 1)] + dice.choice(PIECES)
            case 3:
                lines[at] = lines[at].lstrip() if dice.random() < 0.5 else indent + lines[at]
            case _:
                lines += lines[at:] * dice.choice([1, 2, 50])
    text = "\n".join(lines)
    return text.encode() if dice.random() < 0.95 else text.encode("utf-16")


if __name__ == "__main__":
    main()
