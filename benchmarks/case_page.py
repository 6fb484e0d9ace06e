"""The figures of a page of docs/cases, between its marks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = ["write_figures"]


def write_figures(page: Path, found: dict[str, Any]) -> None:
    """Write what `cases.measure` found in the place of what the page shows now."""
    text = page.read_text(encoding="utf-8")
    for mark, body in {
        "before": _inspection("MODEL", found["before"]),
        "after": _inspection("OUT/onnx" if "$ onnx-tailor inspect OUT/onnx" in text else "OUT", found["after"]),
        "figures": _table(found),
    }.items():
        places = list(re.finditer(rf"(?<=<!-- {mark}: )(.*? -->\n).*?(?=<!-- end of {mark} -->)", text, re.DOTALL))
        assert len(places) == 1, f"{page} has {len(places)} marks <!-- {mark}: ... -->"
        text = f"{text[: places[0].end(1)]}\n{body}\n\n{text[places[0].end() :]}"
    page.write_text(text, encoding="utf-8")


def _inspection(name: str, printed: str) -> str:
    return f"```console\n$ onnx-tailor inspect {name}\n{printed}\n```"


def _table(found: dict[str, Any]) -> str:
    before, after, cost = found["report"]["before"], found["report"]["after"], found["run"]
    rows = [
        ("", "before", "after"),
        ("---", "---:", "---:"),
        ("all files", _bytes(before["file_bytes"]), _bytes(after["file_bytes"])),
        ("", "", f"**{1 - after['file_bytes'] / before['file_bytes']:.1%}** less"),
        ("bits per weight", f"{before['bits_per_weight']:.2f}", f"{after['bits_per_weight']:.2f}"),
        (
            "processor time of `run`, that of copying the files being 1",
            "",
            f"{cost['copies']:.1f} ({cost['seconds']:.0f} s)",
        ),
        ("peak memory of `run`", "", f"{cost['peak_mb']:.0f} MB"),
    ]
    several = len(found["files"]) > 1
    for each in found["files"]:
        where = f" of `{each['file']}`" if several else ""
        rows += [(f"{name}{where}", *cells) for name, *cells in _comparison(each)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _comparison(each: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows of one pair of files."""
    rows = []
    if each["token_ratio"] is not None:
        rows.append(("time of a decoded token", "1", f"{each['token_ratio']:.2f}"))
    if each["kl_mean"] is not None:
        if not each["random"]:
            reference, candidate = each["perplexity_reference"], each["perplexity_candidate"]
            rows.append(("perplexity", f"{reference:.2f}", f"{candidate:.2f}"))
        rows.append(("KL divergence, mean and largest", "0", f"{each['kl_mean']:.2g}, {each['kl_max']:.2g}"))
        rows.append(("the same most likely token", "", f"{each['top1_agreement']:.1%}"))
    worst = max(each["outputs"], key=lambda output: float(output["max_rel"]))
    logits = next((output for output in each["outputs"] if "logits" in output["name"]), worst)
    rows.append((f"largest difference, relative, in `{logits['name']}`", "0", _relative(logits)))
    if worst is not logits:
        rows.append((f"in any output, in `{worst['name']}`", "0", _relative(worst)))
    return rows


def _relative(output: dict[str, Any]) -> str:
    return f"{float(output['max_rel']):.2g}" if float(output["max_rel"]) else "equal"


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
