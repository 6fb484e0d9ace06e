"""Compute what `onnx-tailor verify` prints anew, from ONNX Runtime's logits and numpy alone, and compare the figures.

Shares no code with the package, which runs in a process of its own. Also measures how much memory verify needs
beyond the two sessions: its peak, less the peaks of two processes that load and run one model each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

KEYS = (
    "perplexity_reference",
    "perplexity_candidate",
    "kl_mean",
    "kl_p99",
    "kl_max",
    "top1_agreement",
    "top5_agreement",
)


def main() -> None:
    """Print both figures side by side; exit 1 where they differ in the first four digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=8)
    options = parser.parse_args()
    windows = _windows(options.text, options.tokenizer, options.window)[: options.windows]
    shown, verify_peak = _verify(options)
    # Before this process grows: a child's peak begins with what its parent held when it was made.
    sessions = sum(_peak_of_session(path, windows[0]) for path in (options.reference, options.candidate))
    own = _figures(_session(options.reference), _session(options.candidate), windows)
    print(f"{'':24}{'verify':>14}{'this script':>14}")
    same = True
    for key in KEYS:
        first, second = f"{float(shown[key]):.4g}", f"{own[key]:.4g}"
        same &= first == second
        print(f"{key:24}{first:>14}{second:>14}{'' if first == second else '  DIFFERS'}")
    print(f"peak of verify {verify_peak >> 20} MiB, of the two models alone {sessions >> 20} MiB")
    sys.exit(0 if same else 1)


def _windows(text: Path, tokenizer: Path, window: int) -> list[list[int]]:
    """Cut the text into windows, with the special tokens that the tokenizer puts in front before each."""
    encoder = Tokenizer.from_file(str(tokenizer))
    probe = encoder.encode("a")
    front = []
    for token, special in zip(probe.ids, probe.special_tokens_mask, strict=True):
        if not special:
            break
        front.append(token)
    ids = encoder.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    step = window - len(front)
    return [front + ids[at : at + step] for at in range(0, len(ids) - step + 1, step)]


def _verify(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Run the command line; return its JSON object and its peak of resident memory in bytes."""
    command = [sys.executable, "-m", "onnx_tailor", "verify", str(options.reference), str(options.candidate), "--json"]
    command += ["--text", str(options.text), "--tokenizer", str(options.tokenizer)]
    command += ["--window", str(options.window), "--windows", str(options.windows)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit("verify failed")
    return json.loads(output), usage.ru_maxrss * 1024


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _logits(session: ort.InferenceSession, ids: list[int]) -> np.ndarray:
    """Return the logits [s, V] of a prefill from an empty cache, in float64."""
    feeds: dict[str, np.ndarray] = {}
    for each in session.get_inputs():
        dtype = {"tensor(int64)": np.int64, "tensor(float16)": np.float16}.get(each.type, np.float32)
        if each.name == "input_ids":
            feeds[each.name] = np.array([ids], dtype)
        elif each.name == "attention_mask":
            feeds[each.name] = np.ones((1, len(ids)), dtype)
        elif each.name == "position_ids":
            feeds[each.name] = np.arange(len(ids), dtype=dtype)[None]
        else:
            _, heads, _, size = each.shape
            feeds[each.name] = np.zeros((1, heads, 0, size), dtype)
    (logits,) = session.run(["logits"], feeds)
    return logits[0].astype(np.float64)


def _figures(reference: Any, candidate: Any, windows: list[list[int]]) -> dict[str, float]:
    """Measure position by position, in the plainest way."""
    kl, nll_p, nll_q, top1, top5 = [], [], [], [], []
    for ids in windows:
        for at, (a, b) in enumerate(zip(_logits(reference, ids), _logits(candidate, ids), strict=True)):
            log_p = a - a.max() - np.log(np.exp(a - a.max()).sum())
            log_q = b - b.max() - np.log(np.exp(b - b.max()).sum())
            kl.append(float((np.exp(log_p) * (log_p - log_q)).sum()))
            best = [np.argsort(-row, kind="stable")[:5] for row in (a, b)]
            top1.append(best[0][0] == best[1][0])
            top5.append(len(set(best[0].tolist()) & set(best[1].tolist())) / 5)
            if at + 1 < len(ids):
                nll_p.append(-log_p[ids[at + 1]])
                nll_q.append(-log_q[ids[at + 1]])
    figures = (
        np.exp(np.mean(nll_p)),
        np.exp(np.mean(nll_q)),
        np.mean(kl),
        np.percentile(kl, 99),
        np.max(kl),
        np.mean(top1),
        np.mean(top5),
    )
    return {key: float(value) for key, value in zip(KEYS, figures, strict=True)}


def _peak_of_session(path: Path, ids: list[int]) -> int:
    """Return the peak of a process that loads a model and runs two tokens."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_load_and_run, (path, ids[:2]))


def _load_and_run(path: Path, ids: list[int]) -> int:
    import resource

    _logits(_session(path), ids)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
