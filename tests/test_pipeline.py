"""`run` from the command line to the folder it writes: what stands there, what it never touches, what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import handmade
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from onnx_tailor.cli import app
from onnx_tailor.graph.file.places import model_files


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(recipe: str, model: Path, out: Path, *options: object) -> Result:
    result = call("run", recipe, model, "-o", out, *options)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("data", [None, "model.onnx.data", "model.onnx_data"])
@pytest.mark.parametrize("recipe", ["tie", "rtn-8bit", "k-quant"])
def test_the_output_is_a_model_of_the_same_values(tmp_path: Path, recipe: str, data: str | None) -> None:
    path = handmade.decoder(tmp_path / "in" / "model.onnx", data=data)
    before = handmade.contents(path.parent)
    run(recipe, path, tmp_path / "out")
    written = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(str(written))
    expected, found = handmade.logits(path), handmade.logits(written)
    tolerance = {"tie": 1e-5, "rtn-8bit": 0.5, "k-quant": 3.0}[recipe]
    assert np.abs(expected - found).max() < tolerance
    assert handmade.contents(path.parent) == before
    assert sorted(handmade.contents(tmp_path / "out")) == [
        "model.onnx",
        data or "model.onnx.data",
        "tailor-report.json",
    ]


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    path = handmade.decoder(tmp_path / "in" / "model.onnx")
    run("tie", path, tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    names = {tensor.name for tensor in model.graph.initializer}
    assert "lm_head.weight" not in names
    size = handmade.VOCABULARY * handmade.WIDTH * 4 + 2 * handmade.WIDTH**2 * 4
    assert size <= (tmp_path / "out" / "model.onnx.data").stat().st_size < size + 4 * 4096


def test_companions_are_copied_and_other_files_are_not(tmp_path: Path) -> None:
    path = handmade.decoder(tmp_path / "in" / "model.onnx")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "notes.txt"):
        (path.parent / name).write_text(name)
    run("tie", path, tmp_path / "out")
    found = set(handmade.contents(tmp_path / "out"))
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < found
    assert "notes.txt" not in found


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    path = handmade.decoder(tmp_path / "in" / "model.onnx")
    before = handmade.contents(tmp_path)
    report = json.loads(call("run", "rtn", path, "--dry-run", "--json").stdout)
    assert report["out"] is None
    assert report["after"]["weight_bytes"] < report["before"]["weight_bytes"] / 4
    run("rtn", path, tmp_path / "out", "--dry-run")
    assert handmade.contents(tmp_path) == before


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return handmade.decoder(tmp_path / "a" / "in" / "model.onnx")


def refused(status: int, *arguments: object) -> str:
    result = call("run", "tie", *arguments)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


def test_an_output_that_is_the_input_is_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "link").symlink_to(model.parent)
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    before = handmade.contents(tmp_path)
    for out in (
        model.parent,
        model.parent / ".",
        model.parent / ".." / "in",
        tmp_path / "link",
        tmp_path / "a",
        tmp_path / "a" / "up",
        tmp_path,
        Path("/"),
    ):
        for given in (model, model.parent, tmp_path / "link" / "model.onnx"):
            message = refused(2, given, "-o", out, "--overwrite")
            assert "is the model's own folder, or holds it" in message
    assert handmade.contents(tmp_path) == before


def test_an_output_inside_the_input_is_written_beside_it(tmp_path: Path, model: Path) -> None:
    before = handmade.contents(model.parent)
    run("tie", model.parent, model.parent / "tied")
    after = handmade.contents(model.parent)
    assert {name: content for name, content in after.items() if not name.startswith("tied/")} == before
    onnx.checker.check_model(str(model.parent / "tied" / "model.onnx"))


def test_an_output_through_which_a_link_leads_to_the_input_is_refused(tmp_path: Path) -> None:
    """The ONNX file is a link, as in a download cache; writing beside its target would be writing into the cache."""
    path = handmade.decoder(tmp_path / "cache" / "model.onnx")
    (tmp_path / "snapshot").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "snapshot" / name).symlink_to(path.parent / name)
    before = handmade.contents(tmp_path)
    assert "is the model's own folder" in refused(
        2, tmp_path / "snapshot" / "model.onnx", "-o", tmp_path / "cache", "--overwrite"
    )
    assert handmade.contents(tmp_path) == before
    run("tie", tmp_path / "snapshot" / "model.onnx", tmp_path / "out")
    assert not (tmp_path / "out" / "model.onnx").is_symlink()


def test_an_output_in_the_way_is_left_as_it_is(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert "exists already; choose another folder, or give --overwrite" in refused(2, model, "-o", out)
    assert handmade.contents(out) == {"mine": b"mine"}
    (tmp_path / "file").write_text("file")
    assert "is a file; -o names a folder" in refused(2, model, "-o", tmp_path / "file", "--overwrite")
    assert "is a file; -o names a folder" in refused(2, model, "-o", tmp_path / "file" / "below")
    run("tie", model, out, "--overwrite")
    assert "mine" not in handmade.contents(out)
    assert list(tmp_path.glob(".out*")) == []


def test_an_empty_folder_is_taken(tmp_path: Path, model: Path) -> None:
    (tmp_path / "out").mkdir()
    run("tie", model, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").exists()


def test_missing_parents_of_the_output_are_made(tmp_path: Path, model: Path) -> None:
    run("tie", model, tmp_path / "x" / "y" / "out")
    assert (tmp_path / "x" / "y" / "out" / "model.onnx").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, model: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Permission denied; nothing was written" in refused(1, model, "-o", tmp_path / "locked" / "out")


def test_a_weight_that_cannot_be_quantized_leaves_nothing(tmp_path: Path) -> None:
    def poison(model: onnx.ModelProto) -> None:
        values = np.frombuffer(model.graph.initializer[1].raw_data, np.float32).copy()
        values[70] = np.nan
        model.graph.initializer[1].raw_data = values.tobytes()

    path = handmade.decoder(tmp_path / "in" / "model.onnx", edit=poison)
    result = call("run", "rtn", path, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "holds nan at row 6, column 1, which no quantized value can stand for" in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in"]


def test_running_twice_changes_nothing(tmp_path: Path, model: Path) -> None:
    run("rtn", model, tmp_path / "once")
    run("rtn", tmp_path / "once" / "model.onnx", tmp_path / "twice")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_a_folder_of_nothing_but_a_model_file_is_its_only_member(model: Path) -> None:
    assert model_files(model.parent) == [model]
