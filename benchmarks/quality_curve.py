"""Draw KL against bits for each weight: rows that `quality.py --json` printed, and what peers' files gave.

    python benchmarks/quality_curve.py benchmarks/quality_gemma.json docs/images/quality.svg

The file holds `measured` and `peers`, lists of rows with `series`, `label`, `bits_per_weight` and `kl_mean`; rows of
one series are joined by a line where there are several. `note` tells on what the peers were measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import vl_convert

_COLOURS = ["#2f6fb5", "#1a7f4b", "#8a4fbf", "#9a6700", "#c0562c", "#6b6b6b"]


def main() -> None:
    """Write a PNG or an SVG, by the name's ending."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    content = json.loads(options.rows.read_text(encoding="utf-8"))
    spec = chart(content)
    if options.out.suffix == ".svg":
        options.out.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    else:
        options.out.write_bytes(vl_convert.vegalite_to_png(spec, scale=2))


def chart(content: dict[str, Any]) -> dict[str, Any]:
    """Return the Vega-Lite chart."""
    ours = [{**row, "by": "onnx-tailor"} for row in content["measured"]]
    theirs = [{**row, "by": "another tool"} for row in content["peers"]]
    series = list(dict.fromkeys(row["series"] for row in (*ours, *theirs)))
    encoding = {
        "x": {
            "field": "bits_per_weight",
            "type": "quantitative",
            "title": "bits for each weight, scales and zero points included",
            "scale": {"domain": [4.4, 8.2]},
        },
        "y": {
            "field": "kl_mean",
            "type": "quantitative",
            "title": "KL divergence from the original, nats a token",
            "scale": {"type": "log", "domain": [0.02, 0.8]},
            "axis": {"values": [0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7]},
        },
        "color": {
            "field": "series",
            "type": "nominal",
            "sort": series,
            "scale": {"domain": series, "range": (_COLOURS * 3)[: len(series)]},
            "legend": {"title": None, "orient": "right"},
        },
    }
    shape = {
        "field": "by",
        "type": "nominal",
        "scale": {"domain": ["onnx-tailor", "another tool"], "range": ["circle", "cross"]},
        "legend": {"title": None, "orient": "right"},
    }
    beside = {"onnx-tailor": ("left", 8), "another tool": ("right", -8)}
    labels = [
        {
            "transform": [{"filter": {"field": "by", "equal": by}}],
            "mark": {"type": "text", "align": align, "dx": dx, "dy": -6, "fontSize": 11},
            "encoding": {**encoding, "text": {"field": "label"}},
        }
        for by, (align, dx) in beside.items()
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "title": {"text": content["title"], "subtitle": content["note"], "anchor": "start", "subtitleColor": "#555"},
        "width": 620,
        "height": 420,
        "background": "white",
        "data": {"values": [*ours, *theirs]},
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": encoding},
            {"mark": {"type": "point", "filled": True, "size": 70}, "encoding": {**encoding, "shape": shape}},
            *labels,
        ],
        "config": {"view": {"stroke": None}, "axis": {"gridColor": "#e5e5e5"}},
    }


if __name__ == "__main__":
    main()
