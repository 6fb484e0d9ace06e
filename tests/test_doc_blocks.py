"""Every command, recipe and piece of Python in the README and the pages is run, on the bundled model.

`docs/write-a-pass.md` has a test of its own. A command's line may end in a comment; MODEL and OUT stand for folders,
mine.txt for a text. Where a block shows what becomes of OUT and does not make it, the page's own first `run` does.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
from case_models import stand_in
from typer.testing import CliRunner

from onnx_tailor import recipe, recipes
from onnx_tailor.cli import app

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "tiny-llama"
CASES = sorted(set(ROOT.glob("docs/cases/*.md")) - {ROOT / "docs" / "cases" / "index.md"})
PAGES = [ROOT / "README.md", *sorted(set(ROOT.glob("docs/**/*.md")) - set(ROOT.glob("docs/reference/*")))]
BLOCKS = [
    pytest.param(page, language, text, id=f"{page.name}-{number}-{language}")
    for page in PAGES
    if page.name != "write-a-pass.md"
    for number, (language, text) in enumerate(
        re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    )
]


@pytest.mark.parametrize(("page", "language", "text"), BLOCKS)
def test_a_block_of_the_pages_works(
    page: Path, language: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(page.stem, tmp_path / "MODEL")
    (tmp_path / "mine.txt").write_bytes((EXAMPLE / "held-back.txt").read_bytes()[:4000])
    monkeypatch.chdir(tmp_path)
    if language == "console":
        for line in text.splitlines():
            if line.startswith("$ "):
                _command(line.removeprefix("$ "), page)
    elif language == "yaml":
        if "\nrecipe: 1\n" in f"\n{text}":
            (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
            recipe.load("r.yaml")
    elif language == "python":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(text, "block", "exec"), {})
        assert printed.getvalue() or "print" not in text
    else:
        assert language == "text"


@pytest.mark.parametrize("page", CASES, ids=lambda page: page.stem)
def test_a_case_shows_a_shipped_recipe_as_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (name,) = re.findall(r"^`recipes/([\w-]+)\.yaml`", text, re.MULTILINE)
    assert f"```yaml\n{recipes.path(name).read_text(encoding='utf-8')}```" in text
    assert f"$ onnx-tailor run {name} MODEL -o OUT" in text


def _first_run(page: Path) -> list[str]:
    """Return the arguments of the first `run` of the page that makes OUT."""
    found = re.search(r"^\$ onnx-tailor (run .*-o OUT\b.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(found[1] if found else "run k-quant MODEL -o OUT", comments=True)


def _command(line: str, page: Path) -> None:
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
    if words[1] != "run" and any(word.split("/")[0] == "OUT" for word in words) and not Path("OUT").exists():
        made = CliRunner().invoke(app, _first_run(page))
        assert made.exit_code == 0, made.output
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code in ({0, 1} if words[1] == "lint" else {0}), result.output  # lint's 1 says that it found any
    if target is not None:
        Path(target).write_text(result.stdout, encoding="utf-8")
