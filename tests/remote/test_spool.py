"""Blocks of remote files on the disk: the right bytes, and never more of them than the limit."""

from __future__ import annotations

import random

import pytest

from onnx_tailor.remote import Url, spool


def test_every_read_is_right_and_the_oldest_blocks_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "BLOCK", 64)
    dice = random.Random(0)
    files = {Url(f"s3://b/{i}"): dice.randbytes(64 * 10 + 7) for i in range(3)}
    fetched: list[tuple[Url, int]] = []
    held = spool.Spool(4)
    for _ in range(500):
        url, content = dice.choice(list(files.items()))
        start = dice.randrange(len(content))
        buffer = bytearray(dice.randrange(1, min(200, len(content) - start) + 1))

        def fetch(first: int, last: int, url: Url = url) -> bytes:
            fetched.append((url, first))
            return files[url][first:last]

        held.read_into(url, len(content), start, memoryview(buffer), fetch)
        assert buffer == content[start : start + len(buffer)]
    assert held._file.seek(0, 2) <= 4 * 64
    again = len(fetched)
    held.read_into(url, len(content), start, memoryview(buffer), fetch)
    assert len(fetched) == again


def test_a_write_that_fails_loses_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "BLOCK", 64)
    content, url, held = bytes(range(256)), Url("s3://b/x"), spool.Spool(2)

    def read(block: int) -> bytes:
        buffer = bytearray(64)
        held.read_into(url, len(content), 64 * block, memoryview(buffer), lambda first, last: content[first:last])
        return bytes(buffer)

    assert (read(0), read(1)) == (content[:64], content[64:128])
    with monkeypatch.context() as patch:
        patch.setattr(held, "_file", None)
        with pytest.raises(AttributeError):
            read(2)
    for block in (3, 1, 2, 0, 3):
        assert read(block) == content[64 * block : 64 * block + 64]
