"""A short, repeatable part of fuzz.py."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from types import ModuleType


def _load() -> ModuleType:
    # pytest's importlib mode gives a test's neighbours no name to import them by.
    spec = importlib.util.spec_from_file_location("onnx_tailor_fuzz", Path(__file__).with_name("fuzz.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = _load()
some = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def no_limit_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no finding here."""
    monkeypatch.setattr(fuzz, "LIMIT_SECONDS", 1e9)
    monkeypatch.setattr(fuzz, "LIMIT_BYTES", 1 << 60)


@some
@given(st.integers(0, 2**32))
def test_a_mutated_model_is_read_or_refused(seed: int) -> None:
    dice = random.Random(seed)
    _, what = fuzz.try_model(fuzz.mutated_model(dice), dice)
    assert not what


@some
@given(st.integers(0, 2**32))
def test_a_mutated_recipe_is_read_or_refused(seed: int) -> None:
    _, what = fuzz.try_recipe(fuzz.mutated_recipe(random.Random(seed)))
    assert not what
