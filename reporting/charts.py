"""The charts, drawn by Vega without a browser into SVG that follows the page's colours.

Text and lines take the colour of the text around them (`currentColor`), so that one drawing serves light and dark
pages. Fills are dark enough for white labels and light enough to be told from a dark page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from onnx_tailor.reporting.size_map import SizeMap

__all__ = ["BITS_COLOURS", "WIDTHS", "Chart", "blame_bars", "bytes_bars", "error_lines", "kl_against_bytes", "treemap"]

WIDTHS = (300, 680)
"""Pixels; each chart is drawn for a phone and for a wider page."""
BITS_COLOURS = {2: "#c0362c", 4: "#9a6700", 8: "#1a7f4b", 16: "#2f6fb5", 32: "#6a5acd"}
"""By the bits of a weight."""

_SERIES = ("#2f6fb5", "#c0562c", "#1a7f4b", "#8a4fbf", "#9a6700", "#b0367a", "#4a7a8c", "#6b6b6b")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_TEXT = {"labelColor": "currentColor", "titleColor": "currentColor"}
_CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {**_TEXT, "domainColor": "currentColor", "tickColor": "currentColor", "gridOpacity": 0.18}
    | {"gridColor": "currentColor", "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
    "legend": {**_TEXT, "orient": "top", "labelFontSize": 12, "titleFontSize": 12, "columns": 2, "labelLimit": 260},
    "text": {"color": "currentColor"},
}
_numbers = count()


@dataclass(frozen=True)
class Chart:
    """One drawing in every width."""

    drawings: tuple[str, ...]
    """SVG elements, one for each of `WIDTHS`."""


def bytes_bars(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw the models' bytes on one scale, stacked by role and coloured by bits."""
    return _lite(
        {
            "height": {"step": 34},
            "mark": {"type": "bar", "stroke": "currentColor", "strokeWidth": 0.6},
            "encoding": {
                "y": {"field": "model", "type": "nominal", "sort": None, "axis": {"title": None, "labelLimit": 110}},
                "x": {"field": "megabytes", "type": "quantitative", "title": "MB of weights", "stack": "zero"},
                "color": _bits_colour(),
                "order": {"field": "order"},
                "detail": {"field": "role"},
            },
        },
        [
            {**row, "bits": str(row["bits"]), "megabytes": row["bytes"] / 1e6, "order": number}
            for number, row in enumerate(rows)
        ],
    )


def treemap(sizes: SizeMap) -> Chart:
    """Draw the weights as areas, those of a layer side by side, coloured by bits."""
    nodes: list[dict[str, Any]] = [{"id": "all"}]
    groups = dict.fromkeys(part.layer for part in sizes.parts if part.layer is not None)
    nodes += [{"id": f"layer {layer}", "parent": "all"} for layer in groups]
    for number, part in enumerate(sizes.parts):
        where = "" if part.layer is None else f"layer {part.layer}"
        nodes.append(
            {
                "id": f"part {number}",
                "parent": where or "all",
                "size": part.count,
                "bits": part.bits,
                "label": part.role if part.layer is None else f"{part.layer} {part.role}",
            }
        )
    return Chart(tuple(_vega(_treemap(nodes, width)) for width in WIDTHS))


def error_lines(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw the relative error at the end of each layer, a line for each candidate."""
    return _lite(
        {
            "height": 220,
            "mark": {"type": "line", "point": {"size": 45, "filled": True}, "strokeWidth": 2},
            "encoding": {
                "x": {"field": "place", "type": "nominal", "sort": None, "title": "layer"}
                | {"axis": {"labelAngle": 0, "labelOverlap": True, "labelLimit": 60}},
                "y": {"field": "percent", "type": "quantitative", "title": "relative error, %"},
                **_series(rows),
            },
        },
        rows,
    )


def blame_bars(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw the largest shares of the divergence, a bar for each weight."""
    return _lite(
        {
            "height": {"step": 20},
            "mark": {"type": "bar"},
            "encoding": {
                "y": {"field": "weight", "type": "nominal", "sort": None, "title": None}
                | {"axis": {"labelLimit": 150, "title": None}},
                "x": {"field": "kl", "type": "quantitative", "title": "KL of this weight alone, nats"}
                | {"axis": {"tickCount": 3, "format": "~g"}},
                "color": _bits_colour(),
            },
        },
        [{**row, "bits": str(row["bits"])} for row in rows],
    )


def kl_against_bytes(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw each candidate as a point: its bytes to the right, its divergence upwards."""
    return _lite(
        {
            "height": 240,
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {
                "x": {"field": "megabytes", "type": "quantitative", "title": "MB of weights", "scale": {"zero": False}}
                | {"axis": {"tickCount": 5}},
                "y": {"field": "kl", "type": "quantitative", "title": "mean KL, nats"},
                **_series(rows),
            },
        },
        rows,
    )


def _bits_colour() -> dict[str, Any]:
    domain = [str(bits) for bits in BITS_COLOURS]
    scale = {"domain": domain, "range": list(BITS_COLOURS.values())}
    return {"field": "bits", "type": "nominal", "scale": scale, "legend": None}


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return colour and shape by candidate, in one legend; none where there is but one candidate."""
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    colours = [_SERIES[number % len(_SERIES)] for number in range(len(names))]
    shapes = [_SHAPES[number % len(_SHAPES)] for number in range(len(names))]
    field = {"field": "candidate", "type": "nominal", "sort": None, "title": None}
    field |= {} if len(names) > 1 else {"legend": None}
    return {
        "color": {**field, "scale": {"domain": names, "range": colours}},
        "shape": {**field, "scale": {"domain": names, "range": shapes}},
    }


def _lite(spec: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw a Vega-Lite specification in every width, the axes included."""
    import vl_convert

    drawings = []
    for width in WIDTHS:
        whole = {
            "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
            "width": width,
            "autosize": {"type": "fit-x", "contains": "padding"},
            "padding": {"left": 12, "right": 12, "top": 4, "bottom": 4},  # the reader's font may be wider
            "data": {"values": list(rows)},
            "config": _CONFIG,
            **spec,
        }
        drawings.append(_own_names(vl_convert.vegalite_to_svg(whole)))
    return Chart(tuple(drawings))


def _vega(spec: Mapping[str, Any]) -> str:
    import vl_convert

    return _own_names(vl_convert.vega_to_svg(dict(spec)))


def _treemap(nodes: list[dict[str, Any]], width: int) -> dict[str, Any]:
    """Return the Vega specification of a treemap; Vega-Lite has none."""
    room = "(datum.x1 - datum.x0) > 26 && (datum.y1 - datum.y0) > 13"
    layout: dict[str, Any] = {"type": "treemap", "field": "size", "sort": {"field": "value", "order": "descending"}}
    layout |= {"method": "squarify", "ratio": 1.4, "paddingInner": 1, "paddingTop": 1, "round": True}
    layout |= {"size": [{"signal": "width"}, {"signal": "height"}]}
    return {
        "$schema": "https://vega.github.io/schema/vega/v5.json",
        "width": width,
        "height": max(200, width * 2 // 5),
        "background": None,
        "config": {"font": "system-ui, sans-serif"},
        "data": [
            {
                "name": "tree",
                "values": nodes,
                "transform": [{"type": "stratify", "key": "id", "parentKey": "parent"}, layout],
            },
            {"name": "leaves", "source": "tree", "transform": [{"type": "filter", "expr": "!datum.children"}]},
        ],
        "scales": [
            {
                "name": "colour",
                "type": "ordinal",
                "domain": list(BITS_COLOURS),
                "range": list(BITS_COLOURS.values()),
            }
        ],
        "marks": [
            {
                "type": "rect",
                "from": {"data": "leaves"},
                "encode": {
                    "enter": {
                        "x": {"field": "x0"},
                        "y": {"field": "y0"},
                        "x2": {"field": "x1"},
                        "y2": {"field": "y1"},
                        "fill": {"scale": "colour", "field": "bits"},
                    }
                },
            },
            {
                "type": "text",
                "from": {"data": "leaves"},
                "encode": {
                    "enter": {
                        "x": {"signal": "(datum.x0 + datum.x1) / 2"},
                        "y": {"signal": "(datum.y0 + datum.y1) / 2"},
                        "align": {"value": "center"},
                        "baseline": {"value": "middle"},
                        "fill": {"value": "#ffffff"},
                        "fontSize": {"value": 11},
                        "limit": {"signal": "datum.x1 - datum.x0 - 2"},
                        "text": {"signal": f"{room} ? datum.label : ''"},
                    }
                },
            },
        ],
    }


def _own_names(svg: str) -> str:
    """Give the drawing's ids a number of their own: several drawings share one page."""
    mark = f"d{next(_numbers)}-"
    svg = re.sub(r'\bid="', f'id="{mark}', svg)
    return re.sub(r"url\(#", f"url(#{mark}", svg)
