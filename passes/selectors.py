"""The `nodes` option of quantize: which rule applies to which weight."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, Protocol

from onnx_tailor.errors import OptionError
from onnx_tailor.graph.meaning.quantized import Quantized, find_quantized
from onnx_tailor.graph.meaning.roles import Place
from onnx_tailor.graph.model import TailorModel

_MAGIC = re.compile(r"[*?\[]")
"""What makes a pattern more than a name."""
Bits = Literal[2, 4, 8]
Setting = Literal[2, 4, 8, "float", "skip"]


class Selectable(Hashable, Protocol):
    """What a pattern can name: a weight with its readers, or an operator with its own weights."""

    @property
    def name(self) -> str:
        """What a person would call it by."""

    @property
    def place(self) -> Place:
        """Layer and role."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that `role:NAME` can match."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a glob pattern can match."""


@dataclass(frozen=True, kw_only=True)
class NodeRule:
    """What `nodes` may say about the weights that a pattern matches; what it leaves out stays as in the pass."""

    bits: Setting | None = None
    """Bits, or `float` (or `skip`) to leave the weight alone."""
    block_size: int | None = None
    """Weights along K that share a scale: a power of two from 16 on."""
    symmetric: bool | None = None
    """Without zero points."""
    zero_points: Literal["integer", "float"] | None = None
    """The type of zero points."""
    method: Literal["rtn", "k_quant", "imatrix", "gptq", "gptaq"] | None = None
    """How scales and codes are chosen."""
    layers: str | None = None
    """Only these layers, as in "0-2,15-17"."""


Rules = Mapping[Selectable, NodeRule]
"""The rule of each weight that one names."""


def layer_ranges(text: str) -> tuple[range, ...]:
    """Parse "0-2,15-17".

    Raises:
        ValueError: the text is no list of layers.
    """
    found: list[range] = []
    for part in text.split(","):
        first, through, last = part.strip().partition("-")
        start, stop = int(first), int(last if through else first)
        if stop < start:
            raise ValueError(part)
        found.append(range(start, stop + 1))
    return tuple(found)


def _inside(candidate: Selectable, layers: str | None) -> bool:
    """Whether a candidate lies in these layers, or no layers are named."""
    return layers is None or any(candidate.place.layer in each for each in layer_ranges(layers))


def select(
    nodes: Mapping[str, Setting | NodeRule], candidates: Sequence[Selectable], models: Sequence[TailorModel]
) -> dict[Selectable, NodeRule]:
    """Return each candidate's rule, the first that matches; those that no rule names are absent.

    Raises:
        OptionError: a pattern matches no weight at all, not even one that is quantized in the `models`.
    """
    chosen: dict[Selectable, NodeRule] = {}
    quantized: list[Quantized] | None = None  # looked for where a pattern matches nothing else
    for pattern, setting in nodes.items():
        rule = setting if isinstance(setting, NodeRule) else NodeRule(bits=setting)
        matching = [c for c in candidates if _matches(pattern, c)]
        inside = [c for c in matching if _inside(c, rule.layers)]
        if not inside and quantized is None:
            quantized = [each for model in models for each in find_quantized(model)]
        if not inside and not any(_names(pattern, rule, each) for each in quantized or ()):
            raise OptionError(_nothing(pattern, rule, candidates, bool(matching)), key=("nodes", pattern))
        for candidate in inside:
            chosen.setdefault(candidate, rule)
    return chosen


def idle(nodes: Mapping[str, Setting | NodeRule], candidates: Sequence[Selectable]) -> list[str]:
    """Return the patterns that match no candidate."""
    return [pattern for pattern, rule in nodes.items() if not any(_names(pattern, rule, each) for each in candidates)]


def _names(pattern: str, setting: Setting | NodeRule, candidate: Selectable) -> bool:
    """Whether an entry means a weight."""
    layers = setting.layers if isinstance(setting, NodeRule) else None
    return _matches(pattern, candidate) and _inside(candidate, layers)


def split(
    nodes: Mapping[str, Setting | NodeRule],
    candidates: Sequence[Sequence[Selectable]],
    models: Sequence[TailorModel],
) -> list[dict[str, Setting | NodeRule]]:
    """Return for each file's candidates the entries that match one of them.

    Raises:
        OptionError: a pattern matches no weight of any file.
    """
    select(nodes, [each for file in candidates for each in file], models)
    return [
        {
            pattern: setting
            for pattern, setting in nodes.items()
            if any(first_match({pattern: setting}, each) is not None for each in file)
        }
        for file in candidates
    ]


def first_match(nodes: Mapping[str, Setting | NodeRule], candidate: Selectable) -> str | None:
    """Return the pattern whose rule `select` chooses for the candidate, or None where none names it."""
    return next((pattern for pattern, setting in nodes.items() if _names(pattern, setting, candidate)), None)


def _matches(pattern: str, candidate: Selectable) -> bool:
    if pattern.startswith("role:"):
        return pattern.removeprefix("role:") in candidate.roles
    if not _MAGIC.search(pattern):  # as in a plan, which may have thousands of entries
        return pattern in candidate.names
    return any(fnmatchcase(name, pattern) for name in candidate.names)


def _nothing(pattern: str, rule: NodeRule, candidates: Sequence[Selectable], elsewhere: bool) -> str:
    if elsewhere:
        layers = sorted({c.place.layer for c in candidates if c.place.layer is not None})
        here = f"layers {layers[0]} to {layers[-1]}" if layers else "no layers"
        return f"pattern {pattern!r} matches no weight in layers {rule.layers} (the model has {here})"
    roles = sorted({f"role:{role}" for c in candidates for role in c.roles})
    names = roles if pattern.startswith("role:") else [*roles, *(n for c in candidates for n in c.names)]
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    return f"pattern {pattern!r} matches no weight of this model{hint}"
