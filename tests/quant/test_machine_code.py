"""Machine code on disk belongs to the kernels that it was made from, and is loaded without numba."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnx_tailor.quant import entry, machine_code
from onnx_tailor.quant.machine_code import _Code, _kernel, _key, _read, _write, kernel

CODE = _Code("answer", b"\x7fELF\n 42")


def test_code_is_found_again_until_anything_changes(tmp_path: Path) -> None:
    file = tmp_path / "new" / "tile.code"
    assert _read(file, "a") is None
    assert _write(file, "a", CODE)
    assert _read(file, "a") == CODE
    assert _read(file, "b") is None
    assert [each.name for each in file.parent.iterdir()] == ["tile.code"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"{}\n", b"[]\nx", None])
def test_damaged_code_is_not_loaded(tmp_path: Path, damage: bytes | None) -> None:
    file = tmp_path / "tile.code"
    _write(file, "a", CODE)
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert _read(file, "a") is None


def test_kernels_compile_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel()  # so that there is code on the disk
    kept = next(filter(None, (_read(file, _key()) for file in machine_code._files())))
    (tmp_path / "file").touch()
    monkeypatch.setattr(machine_code, "_files", lambda: iter([tmp_path / "file" / "tile.code"]))
    monkeypatch.setattr(machine_code, "_compiled", lambda: kept)
    assert _kernel.__wrapped__() is not None


def test_the_key_changes_with_settings_of_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _key()
    assert before == _key()
    monkeypatch.setenv("NUMBA_OPT", "0")
    assert _key() != before


def test_the_key_changes_with_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _key()
    folder = Path(machine_code.__file__).parent
    for file in folder.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(machine_code, "__file__", str(tmp_path / "machine_code.py"))
    assert _key() == before
    with (tmp_path / "grids.py").open("a") as file:
        file.write("\n")
    assert _key() != before


def test_the_kernel_is_called_with_as_many_addresses_as_it_takes() -> None:
    assert len(entry._ADDRESSES) == machine_code._ADDRESSES


def test_code_on_the_disk_needs_no_numba() -> None:
    kernel()
    code = (
        "import sys, numpy as np\n"
        "from onnx_tailor.quant import BlockFormat, quantize\n"
        "quantize(np.ones((2, 32), np.float32), BlockFormat(4, 32, False, 'float32'), 'k_quant')\n"
        "print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
