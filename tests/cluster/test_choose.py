"""Which executor is meant, and that nothing of a cluster loads without one."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import handmade
import pytest
from typer.testing import CliRunner

from onnx_tailor.cli import app
from onnx_tailor.cluster.parcels import parcels
from onnx_tailor.errors import ModelError
from onnx_tailor.weights.files import DataFile, InlineBytes
from onnx_tailor.weights.plan import plan
from onnx_tailor.weights.tasks import Destination, tasks
from onnx_tailor.weights.tensors import WeightTensor
from onnx_tailor.weights.view import View


@pytest.mark.parametrize("name", ["ray", "dask", "dask://", "dask://host", "tcp://host:1", ""])
def test_a_name_that_is_no_executor(tmp_path: Path, name: str) -> None:
    model = handmade.decoder(tmp_path / "in" / "model.onnx")
    result = CliRunner().invoke(app, ["run", "rtn", str(model), "-o", str(tmp_path / "out"), "--executor", name])
    assert result.exit_code == 2
    assert f"{name}: is no executor; say `threads`, or dask://HOST:PORT" in result.stderr


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    model = handmade.decoder(tmp_path / "in" / "model.onnx")
    result = CliRunner().invoke(
        app, ["run", "rtn", str(model), "-o", str(tmp_path / "out"), "--executor", "dask://here:1"]
    )
    assert result.exit_code == 2
    assert "needs Dask; install onnx-tailor[cluster], here and on every worker" in result.stderr


def test_threads_load_nothing_of_it(tmp_path: Path) -> None:
    model = handmade.decoder(tmp_path / "in" / "model.onnx")
    code = (
        "import sys; import onnx_tailor as ot; "
        f"ot.run('tie', {str(model)!r}, {str(tmp_path / 'out')!r}); "
        "print({'dask', 'distributed', 'fsspec', 's3fs', 'aiohttp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_task_is_small_and_names_files(tmp_path: Path) -> None:
    """A large value that is in no file stays with the process that has it."""
    import onnx_ir as ir

    (tmp_path / "weights").write_bytes(bytes(64 << 20))
    file = DataFile.open(tmp_path / "weights")
    tensors = [
        WeightTensor.of_view(View.contiguous(where, 0, ir.DataType.UINT8, (where.size,)))
        for where in (file, InlineBytes(bytes(2 << 20)))
    ]
    kept: list[int] = []
    made = list(
        parcels(
            tasks(plan({"out": tensors})),
            Destination(tmp_path, tmp_path / "t"),
            "token",
            lambda task: kept.append(task.number),
        )
    )
    assert kept == [16]
    assert [task.number for parcel in made for task in parcel.tasks] == list(range(16))
    assert all(len(pickle.dumps(parcel)) < 4000 for parcel in made)
    (task, *_) = pickle.loads(pickle.dumps(made[0])).tasks
    assert task == made[0].tasks[0]
    (tmp_path / "weights").unlink()
    with pytest.raises(ModelError, match="every worker must see the model's files under their paths"):
        task.carry_out(lambda *_: None)


def test_a_file_on_another_machine_is_known_by_size_and_time_alone(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(100))
    file: DataFile = pickle.loads(pickle.dumps(DataFile.open(tmp_path / "weights")))
    file.require_unchanged()
    (tmp_path / "weights").write_bytes(bytes(99))
    with pytest.raises(ModelError, match="was changed during the run"):
        file.require_unchanged()
