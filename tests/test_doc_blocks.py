"""Every command, recipe and piece of Python in the README and the pages is run, on the bundled model.

`docs/write-a-pass.md` has a test of its own. A command's line may end in a comment; MODEL and OUT stand for folders,
mine.txt for a text.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onnx_tailor import recipe
from onnx_tailor.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(set(ROOT.glob("docs/**/*.md")) - set(ROOT.glob("docs/reference/*")))]
BLOCKS = [
    pytest.param(language, text, id=f"{page.name}-{number}-{language}")
    for page in PAGES
    if page.name != "write-a-pass.md"
    for number, (language, text) in enumerate(
        re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    )
]


@pytest.mark.parametrize(("language", "text"), BLOCKS)
def test_a_block_of_the_pages_works(language: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples" / "tiny-llama", tmp_path / "MODEL")
    (tmp_path / "mine.txt").write_bytes((tmp_path / "MODEL" / "held-back.txt").read_bytes()[:4000])
    monkeypatch.chdir(tmp_path)
    if language == "console":
        for line in text.splitlines():
            if line.startswith("$ "):
                _command(line.removeprefix("$ "))
    elif language == "yaml":
        if text.startswith("recipe:"):
            (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
            recipe.load("r.yaml")
    elif language == "python":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(text, "block", "exec"), {})
        assert printed.getvalue() or "print" not in text
    else:
        assert language == "text"


def _command(line: str) -> None:
    """Run one line as a shell would; `>` is the only redirection that the pages use."""
    words = shlex.split(line, comments=True)
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], words[-1]
    if words[0] in {"pip", "make", "git", "cd", "python"}:
        return  # other tests, or CI itself, install and build
    assert words[0] == "onnx-tailor"
    if "-o" in words and words[words.index("-o") + 1] == "OUT":
        shutil.rmtree("OUT", ignore_errors=True)
    if words[1:2] == ["verify"] and not Path("OUT").exists():
        assert CliRunner().invoke(app, ["run", "k-quant", "MODEL", "-o", "OUT"]).exit_code == 0
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code in ({0, 1} if words[1] == "lint" else {0}), result.output  # lint's 1 says that it found any
    if target is not None:
        Path(target).write_text(result.stdout, encoding="utf-8")
