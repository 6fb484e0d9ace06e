"""A dry run tells how long the run would take, by trying a tile of each kind of work and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import handmade
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app
from onnx_tailor.output import duration
from onnx_tailor.weights import view
from onnx_tailor.weights.jobs import CopyJob, Piece
from onnx_tailor.weights.pool import workers
from onnx_tailor.weights.quantize_job import QuantizeJob


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return handmade.decoder(tmp_path / "in" / "model.onnx", rows=512, columns=256)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_seconds_are_those_of_a_tile_for_each_of_them(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles that all take half a second by the clock, and hashing that takes none."""
    monkeypatch.setattr(view, "TILE_BYTES", 16384)
    monkeypatch.setattr(duration, "_seconds_to_hash", lambda _: 0.0)
    clock = Clock()
    monkeypatch.setattr(duration, "time", clock)
    tried: list[tuple[int, int]] = []

    def compute(job: CopyJob, tile: tuple[int, int], wanted: frozenset[str]) -> Iterator[Piece]:
        tried.append(tile)
        clock.now += 0.5
        yield "data", 0, np.zeros(1, np.uint8)

    monkeypatch.setattr(CopyJob, "compute", compute)
    found = json.loads(call("run", "tie", model, "--dry-run", "--json").stdout)["forecast"]
    table, layers = 512 * 256 * 4 / 16384, 2 * 256 * 256 * 4 / 16384
    assert len(tried) == 2
    assert found["seconds"] == pytest.approx(0.5 * (table + layers) / workers())


def test_it_is_said(model: Path) -> None:
    result = call("run", "rtn", model, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "takes about 1 s on this machine" in result.stdout


def test_gptq_is_too_much_to_try(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 512, 512))
    options = ["-o", tmp_path / "c.npz", "--hessians", "--tokens", tmp_path / "tokens.npy"]
    assert call("calibrate", model, *options).exit_code == 0
    monkeypatch.setattr(QuantizeJob, "compute", None)
    result = call("run", "gptq", model, "--dry-run", "--json", "--set", f"quantize.calibration={tmp_path / 'c.npz'}")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["forecast"]["seconds"] is None
