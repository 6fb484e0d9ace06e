"""Files are hashed beside other work, and the hashing ends with it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from blake3 import blake3

from onnx_tailor.errors import ModelError
from onnx_tailor.output.digests import Digests
from onnx_tailor.weights.threads import Threads


def test_each_file_is_hashed_once_and_found_in_any_order(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(file.name.encode() * 3_000_000)
    with Digests(Threads()) as digests:
        digests.begin(files[:1])
        digests.begin(files)
        found = digests.of(files[::-1])
    assert [each.name for each in found] == ["b", "a"]
    assert [each.blake3 for each in found] == [blake3(f.read_bytes()).hexdigest() for f in files[::-1]]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with Digests(Threads()) as digests:
        digests.begin([tmp_path / "none"])
        with pytest.raises(ModelError, match="none: cannot be read"):
            digests.of([tmp_path / "none"])


def test_an_end_does_not_wait_for_a_large_file(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)  # sparse; hashing it would take minutes
    start = time.monotonic()
    with Digests(Threads()) as digests:
        digests.begin([file])
    assert time.monotonic() - start < 60
