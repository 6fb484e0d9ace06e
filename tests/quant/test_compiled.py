"""Machine code on disk belongs to the kernels that it was made from."""

from __future__ import annotations

import uuid

import numba
import pytest

from onnx_tailor.quant import compiled


def _make(digest):
    def answer():
        _ = digest
        return 42

    return answer


def _loaded(function) -> bool:
    """Whether calling it takes code from the disk."""
    assert function() == 42
    return bool(function.stats.cache_hits)


def test_code_is_kept_until_any_kernel_changes(monkeypatch):
    for digest in (uuid.uuid4().hex, uuid.uuid4().hex):
        monkeypatch.setattr(compiled, "_digest", lambda digest=digest: digest)
        assert not _loaded(compiled.entry(_make))
        assert _loaded(compiled.entry(_make))


def test_kernels_compile_where_nothing_can_be_written(monkeypatch):
    def njit(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled.entry(_make)() == 42


def test_the_digest_is_that_of_the_files():
    assert compiled._digest() == compiled._digest()
    assert len(compiled._digest()) == 64


@pytest.mark.parametrize("name", ["quantize_tile"])
def test_entries_are_bound_to_the_digest(name):
    from onnx_tailor.quant import kernels

    cells = getattr(kernels, name).py_func.__closure__
    assert compiled._digest() in [cell.cell_contents for cell in cells]
