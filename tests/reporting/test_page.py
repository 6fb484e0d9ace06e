"""The HTML page: whole by itself, true to what was measured, and usable without seeing the charts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from onnx_tailor import pipeline, recipe
from onnx_tailor.cli import app
from onnx_tailor.console.measuring import Measured, measure
from onnx_tailor.progress import Silent
from onnx_tailor.reporting import page
from onnx_tailor.reporting.build import build_page
from onnx_tailor.reporting.size_map import size_map
from onnx_tailor.verify import from_text

pytest.importorskip("vl_convert")

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
MODEL = EXAMPLE / "model.onnx"
TEXT = ("--text", "bundled", "--window", "32", "--windows", "1")


class Reader(HTMLParser):
    """Notes the tags, their attributes, and the text outside of drawings."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._hidden = 0
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in {"svg", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in {"svg", "style"}

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = []
    for name in ("rtn", "k-quant-mixed"):
        made.append(tmp_path_factory.mktemp("models") / name)
        pipeline.run(recipe.load(name), MODEL, made[-1])
    return made


def test_the_page_has_the_measured_figures_and_loads_nothing(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    result = call("verify", EXAMPLE, *folders, *TEXT, "--blame", "--report", path, "--json")
    found = json.loads(result.stdout)["candidates"]
    read = Reader(path)
    for each in found:
        for key in ("perplexity_candidate", "kl_mean", "kl_p99", "kl_max"):
            assert f"{each[key]:.4g}" in read.words
        assert f"{100 * each['top5_agreement']:.2f} %" in read.words
        share = each["blame"]["shares"][0]
        assert share["label"] in read.words
        assert share["mend"] in read.words
    assert all(folder.name in read.words for folder in folders)
    assert "method: k_quant_mixed" in read.words  # the recipe
    assert "bits, line " in read.words  # the receipt
    # Nothing from outside: the only addresses are the names of XML's own vocabularies.
    addresses = set(re.findall(r"[a-z]+://[^\s\"'<]+", read.source))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not {"script", "link", "img", "iframe", "image", "use"} & {tag for tag, _ in read.tags}
    assert not re.search(r"url\((?!#)|@import", read.source)


def test_every_chart_has_a_label_and_a_table_and_the_page_its_landmarks(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert call("verify", EXAMPLE, folders[1], *TEXT, "--blame", "--report", path).exit_code == 0
    read = Reader(path)
    order = [tag for tag, _ in read.tags]
    for at, (tag, _) in enumerate(read.tags):
        if tag == "figure":
            behind = order[at + 1 :]
            assert "table" in behind[: behind.index("figure")] if "figure" in behind else "table" in behind
    drawings = [attributes for attributes in read.all("div") if attributes.get("role") == "img"]
    assert len(drawings) == len(read.all("svg")) == 2 * len(read.all("figure")) == 2 * 5
    assert all("the table below has the figures" in (each["aria-label"] or "") for each in drawings)
    assert read.all("html")[0]["lang"] == "en"
    assert order.count("h1") == order.count("main") == 1
    assert all("scope" in each for each in read.all("th"))
    assert all("tabindex" in each for each in read.all("div") if each.get("class") == "scroll")
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    inner = {each["href"] for each in read.all("a")}
    assert {f"#{each}" for each in ids} >= inner
    # Light and dark share one drawing: text and axes take the page's own colour.
    assert "prefers-color-scheme: dark" in read.source
    axis_text = re.findall(r'<text[^>]*fill="([^"]*)"', read.source)
    assert set(axis_text) == {"currentColor", "#ffffff"}


def test_text_from_outside_is_text(folders: list[Path], tmp_path: Path) -> None:
    tokens = from_text(None, EXAMPLE / "tokenizer.json", 32, limit=1)
    evil = replace(tokens, spell=lambda _: "<script>alert(1)</script>&amp;")
    file = folders[0] / "model.onnx"
    (found,) = measure(MODEL, [file], evil, {}, Silent())
    named = Measured(comparison=replace(found.comparison, reference='<img src="x">'))
    build_page(tmp_path / "report.html", MODEL, [file], [named])
    read = Reader(tmp_path / "report.html")
    assert not read.all("script")
    assert not read.all("img")
    assert "<script>alert(1)</script>&amp;" in read.words


def test_a_run_writes_its_page_also_where_a_limit_keeps_the_result_back(tmp_path: Path) -> None:
    out, path = tmp_path / "out", tmp_path / "report.html"
    result = call("run", "rtn", MODEL, "-o", out, "--verify", *TEXT, "--limit", "kl=1e-9", "--report", path)
    assert (result.exit_code, out.exists()) == (1, False)
    read = Reader(path)
    assert "Limit exceeded: kl: the mean KL divergence" in read.words
    assert "bits, line " in read.words
    assert sorted(each.name for each in tmp_path.iterdir()) == ["report.html"]


def test_the_size_map_accounts_for_every_byte(folders: list[Path]) -> None:
    for folder in (EXAMPLE, *folders):
        (file,) = pipeline.inspect(folder / "model.onnx").to_json()["files"]
        sizes = size_map("m", file)
        assert sizes.total == file["size"]["weight_bytes"]
        assert {part.role for part in sizes.parts} >= {"q", "k", "v", "o", "gate", "up", "down", "table + head"}
    (other,) = [part for part in sizes.parts if part.role == "other"]
    assert other.count < sizes.total / 100


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, said in ((tmp_path / "report.onnx", "ends in .html"), (tmp_path / "no" / "r.html", "there is no folder")):
        result = call("verify", EXAMPLE, EXAMPLE, "--report", path)
        assert result.exit_code == 2
        assert said in result.stderr
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    result = call("verify", EXAMPLE, EXAMPLE, "--report", tmp_path / "report.html")
    assert result.exit_code == 2
    assert "pip install '.[report]'" in result.stderr
    assert not list(tmp_path.iterdir())
