"""The command line: usage, lists and errors; the results on models are tested where they are made."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from language_model import Model
from rich.console import Console
from typer.testing import CliRunner, Result

from onnx_tailor import __version__, pipeline, recipes
from onnx_tailor.cli import TargetName, app
from onnx_tailor.console.arguments import LIMIT_HELP
from onnx_tailor.console.comparison import short_names
from onnx_tailor.console.options import options
from onnx_tailor.console.progress import Lines
from onnx_tailor.errors import ModelError
from onnx_tailor.passes import PASSES
from onnx_tailor.targets import TARGETS
from onnx_tailor.units import change, size, span
from onnx_tailor.verify import LIMITS

if TYPE_CHECKING:
    from pathlib import Path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_version() -> None:
    assert call("--version").stdout == f"onnx-tailor {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, onnx_tailor.cli; from typer.testing import CliRunner as R; "
    code += "R().invoke(onnx_tailor.cli.app, ['--help']); "
    code += "print(*{'numpy', 'onnx', 'onnxruntime', 'numba', 'onnx_ir', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_target_names_are_the_targets() -> None:
    assert {name.value for name in TargetName} == set(TARGETS)


def test_the_help_names_every_limit() -> None:
    most, _, least = LIMIT_HELP.partition("At least:")
    for name, limit in LIMITS.items():
        assert re.search(rf"\b{name}\b", least if limit.least else most), name


def test_short_names() -> None:
    assert short_names(["/x/a/m.onnx", "/x/b/m.onnx"]) == ["a", "b"]
    assert short_names(["/x/a/m.onnx", "/x/a/n.onnx"]) == ["m.onnx", "n.onnx"]
    assert short_names(["/x/m.onnx", "/x/a/m.onnx"]) == ["m.onnx", "a/m.onnx"]
    assert short_names(["/x/m.onnx"] * 2) == ["/x/m.onnx"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument"),
        (["run", "rtn", "m.onnx", "-o", "out", "--target", "gpu"], "gpu"),
        (
            ["run", "rtn", "m.onnx"],
            "error: there is no folder to write to; give one with -o OUT, or --dry-run",
        ),
        (
            ["run", "k-quent", "m.onnx", "-o", "out"],
            "error: no recipe is called 'k-quent'*did you mean k-quant?",
        ),
        (
            ["run", "rtn", "m", "-o", "out", "--set", "quantize.bits=5"],
            "error: --set:1:15: quantize.bits is 5;",
        ),
        (["runn"], "No such command"),
        (["passes", "quantise"], "error: no pass is called 'quantise'; did you mean quantize?"),
        (["recipes", "tye"], "error: no recipe is called 'tye'; did you mean tie?"),
        (
            ["verify", "a", "b", "--tokens", "t.npy", "--text", "t"],
            "error: --tokens and --text exclude each other",
        ),
        (["verify", "a", "b", "--tokenizer", "t.json"], "error: --tokenizer needs --text"),
        (["verify", "a", "b", "--limit", "kl9=1"], "error: --limit kl9=1: no figure is called 'kl9'; did you mean kl"),
        (["verify", "a", "b", "--limit", "kl"], "error: --limit kl: give a number behind the equals sign"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert all(part in result.stderr for part in message.split("*"))

    as_json = call(*arguments, "--json")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout)["error"]["exit_status"] == 2


def test_a_model_error_is_one_sentence_and_one_object(tmp_path: Path) -> None:
    result = call("run", "rtn", str(tmp_path / "none.onnx"), "-o", str(tmp_path / "out"), "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert (error["exit_status"], "none.onnx" in error["message"]) == (1, True)
    assert result.stderr == f"error: {error['message']}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ModelError("x [y]"), 1, "error: x [y]\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; nothing was written\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device; nothing was written\n"),
        (
            PermissionError(13, "Permission denied", "/out"),
            1,
            "error: /out: Permission denied; nothing was written\n",
        ),
        (ZeroDivisionError("z"), 1, "ZeroDivisionError: z\n\nerror: internal error, please report it"),
    ],
)
def test_every_failure_has_its_sentence(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "inspect", fail)
    result = call("inspect", "m.onnx", "--json")
    assert result.exit_code == status
    assert message in result.stderr
    assert json.loads(result.stdout)["error"]["exit_status"] == status


def test_verify_wants_a_folder_with_one_model(tmp_path: Path) -> None:
    result = call("verify", str(tmp_path), str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path} holds no ONNX file\n"


def test_a_report_that_cannot_be_printed_undoes_nothing(tmp_path: Path) -> None:
    """The exit status speaks of the output: whole, whatever became of standard output."""
    model = Model().save(tmp_path / "model.onnx")
    command = [sys.executable, "-m", "onnx_tailor", "run", "rtn", str(model), "-o"]
    with Path("/dev/full").open("w") as full:
        streams = {"stdout": full, "stderr": subprocess.PIPE}
        done = subprocess.run([*command, str(tmp_path / "a")], check=False, text=True, **streams)
    assert (done.returncode, "a is written" in done.stderr) == (0, True)
    with subprocess.Popen([*command, str(tmp_path / "b")], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.close()
        started.wait()
        assert started.returncode == 0
    for name in ("a", "b"):
        assert (tmp_path / name / "tailor-report.json").exists()


def test_recipes_lists_and_prints() -> None:
    listed = call("recipes").stdout
    assert all(name in listed for name in recipes.names())
    assert call("recipes", "k-quant").stdout == recipes.path("k-quant").read_text(encoding="utf-8")
    found = json.loads(call("recipes", "--json").stdout)["recipes"]
    assert [recipe["name"] for recipe in found] == list(recipes.names())


def test_passes_lists_and_documents() -> None:
    listed = call("passes").stdout
    assert all(name in listed for name in PASSES)
    shown = call("passes", "quantize").stdout
    assert "method: rtn | k_quant | imatrix | gptq | gptaq | best | rtn_last | k_quant_last | k_quant_mixed" in shown
    assert "symmetric: true | false  (default false)" in shown
    assert "calibration: path | null  (default null)" in shown
    (found,) = json.loads(call("passes", "tie-embeddings", "--json").stdout)["passes"]
    assert [option["name"] for option in found["options"]] == ["required", "force"]


@pytest.mark.parametrize("name", PASSES)
def test_every_option_has_its_help(name: str) -> None:
    assert all(option.help for option in options(PASSES[name]))


def test_plain_progress_prints_a_line_every_ten_seconds_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(Console(stderr=True), clock=lambda: now)
    lines.start("quantize", 2_000)
    for _ in range(2_000):
        now += 0.0125
        lines.advance(1)
    lines.start("write", 1_000_000)
    lines.advance(999_999)
    lines.finish()
    assert capsys.readouterr().err.splitlines() == [
        "quantize: 40 % of 2 kB",
        "quantize: 80 % of 2 kB",
        "quantize: 2 kB in 25.0 s",
    ]


def test_units() -> None:
    assert [size(n) for n in (0, 999, 1_000, 1_070_000_000)] == ["0 B", "999 B", "1 kB", "1.07 GB"]
    assert (change(200, 50), change(0, 5)) == ("-75.0 %", "")
    assert span([3, 0, 1, 2, 17, 17]) == "0-3, 17"
