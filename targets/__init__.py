"""What each execution provider can run, as data: one TOML file a target, every rule with its source.

The passes choose layouts by these files and `lint` judges by them, so what `run` writes for a target lints clean there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

Version = tuple[int, ...]


_REASONS = ("ragged_rows", "old_default", "padded_columns", "integer_kernels", "float_points_cost", "unpacks")
"""Fields that hold a sentence, or nothing."""


@dataclass(frozen=True)
class TableForm:
    """What decides whether a layout of a quantized table is computed rightly."""

    bits: int
    zero_points: bool
    whole_points: bool
    """The zero points of a row fill whole bytes, so that they can be counted through from the first row."""


@dataclass(frozen=True)
class Wrong:
    """A case in which a layout is refused or computed wrongly."""

    layouts: tuple[str, ...]
    why: str
    source: str
    """Where that is known from: a measurement with its version, or the kernel's own source."""
    bits: tuple[int, ...] = (2, 4, 8)
    zero_points: bool | None = None
    whole_points: bool | None = None
    """Conditions on the table; None where the case holds either way."""
    until: Version | None = None
    """The first release that is right. Older ones are in use and give no error, so the case counts all the same."""

    def holds(self, layout: str, form: TableForm) -> bool:
        """Whether a table of this form in this layout is such a case."""
        wanted = ((self.zero_points, form.zero_points), (self.whole_points, form.whole_points))
        return (
            layout in self.layouts
            and form.bits in self.bits
            and all(condition is None or condition == found for condition, found in wanted)
        )


@dataclass(frozen=True)
class Kernel:
    """What an operator's kernel takes."""

    operator: str
    dtypes: tuple[str, ...]
    """Types of the scales and of the result; empty where there is no kernel at all."""
    since: Mapping[int, Version]
    """By bits, the first release of ONNX Runtime that takes them; bits that are no key are refused."""
    source: str
    bias: bool = True
    """MatMulNBits' sixth input is taken."""
    float_points: tuple[int, ...] = ()
    """Bits of MatMulNBits whose zero points may be of the activation's type, and not only packed integers."""

    @property
    def bits(self) -> tuple[int, ...]:
        """The bits that some release takes."""
        return tuple(sorted(self.since))


@dataclass(frozen=True)
class Target:
    """One execution provider, or several at once."""

    name: str
    summary: str
    layouts: tuple[str, ...]
    """Layouts of a quantized table, best first."""
    wrong: tuple[Wrong, ...]
    kernels: tuple[Kernel, ...]
    """Of all operators that the target is known to treat in its own way; for `portable`, those of every target."""
    providers: tuple[str, ...]
    """Names of the execution providers that ONNX Runtime's sessions take, best first."""
    binding_bytes: int | None = None
    """The largest tensor that a device with no more than the guaranteed limits binds."""
    binding_source: str = ""
    one_copy: bool = False
    """Each initializer goes to the device on its own, so two on one byte range become two copies."""
    bfloat16: bool = False
    """It multiplies in bfloat16."""
    ragged_rows: str = ""
    """Why a table whose rows end inside a block is computed wrongly; "" where it is right."""
    old_default: str = ""
    """What older releases took for the zero point of a table that has none; "" where they were right."""
    padded_columns: str = ""
    """Which build of the target multiplies wrongly by rows that end inside a block; "" where none does."""
    repacks: bool = False
    """Weights of products are repacked at load and let go of, so that no folded one stays beside them."""
    any_block: bool = False
    """Products take about as long whatever the size of their weights' blocks, so that one may choose by error alone."""
    integer_kernels: str = ""
    """What an 8-bit MatMulNBits without accuracy_level 4 costs; "" where it makes no difference."""
    float_points_cost: str = ""
    """What a MatMulNBits with float zero points costs; "" where no more than with integers, or nothing is known."""
    unpacks: str = ""
    """What it costs that a MatMulNBits of any bits makes floats of its whole weight; "" where a kernel reads codes."""

    def objection(self, layout: str, form: TableForm) -> str | None:
        """Return why `layout` is not right for a table of this form, or None if it is right."""
        return next((case.why for case in self.wrong if case.holds(layout, form)), None)

    def layout(self, form: TableForm) -> str:
        """Return the best layout that is right for a table of this form."""
        return next(layout for layout in self.layouts if self.objection(layout, form) is None)

    def lacks(self, operator: str, bits: int) -> bool:
        """Whether a provider has the operator, but not with so many bits."""
        return any(kernel.dtypes and bits not in kernel.since for kernel in self.kernels_of(operator))

    def lacks_float_points(self, bits: int) -> bool:
        """Whether a provider has MatMulNBits, but not with float zero points of so many bits."""
        return any(kernel.dtypes and bits not in kernel.float_points for kernel in self.kernels_of("MatMulNBits"))

    def kernels_of(self, operator: str) -> tuple[Kernel, ...]:
        """Return what is known of this operator's kernels: one for a provider, several for `portable`."""
        return tuple(kernel for kernel in self.kernels if kernel.operator == operator)


def _load() -> dict[str, Target]:
    files = sorted(resources.files(__name__).iterdir(), key=lambda f: f.name)
    data = {
        file.name.removesuffix(".toml"): tomllib.loads(file.read_text(encoding="utf-8"))
        for file in files
        if file.name.endswith(".toml")
    }
    everywhere = data.pop("everywhere")
    return {name: _target(name, raw, data, everywhere) for name, raw in data.items()}


def _target(name: str, raw: Mapping[str, Any], data: Mapping[str, Any], everywhere: Mapping[str, Any]) -> Target:
    """Build one target; `all_of` names others whose rules hold for it as well."""
    parts = [raw, *(data[part] for part in raw.get("all_of", ()))]
    limits = [part["binding"] for part in parts if "binding" in part]
    least = min(limits, key=lambda limit: int(limit["bytes"]), default=None)
    return Target(
        name=name,
        summary=raw["summary"],
        layouts=tuple(raw["layouts"]),
        wrong=tuple(_wrong(case) for part in (everywhere, *parts) for case in part.get("wrong", ())),
        kernels=tuple(_kernel(row) for part in parts for row in part.get("kernel", ())),
        providers=tuple(raw["providers"]),
        binding_bytes=None if least is None else least["bytes"],
        binding_source="" if least is None else least["source"],
        one_copy=any(part.get("one_copy", False) for part in parts),
        repacks=all(part.get("repacks", False) for part in parts if "all_of" not in part),
        bfloat16=all(part.get("bfloat16", False) for part in parts if "all_of" not in part),
        any_block=all(part.get("any_block", False) for part in parts if "all_of" not in part),
        **{name: _first(parts, name) for name in _REASONS},
    )


def _first(parts: Sequence[Mapping[str, Any]], name: str) -> str:
    return next((str(part[name]) for part in parts if name in part), "")


def _wrong(raw: Mapping[str, Any]) -> Wrong:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return Wrong(**values | ({"until": version(raw["until"])} if "until" in raw else {}))


def _kernel(raw: Mapping[str, Any]) -> Kernel:
    since = {int(bits): version(text) for bits, text in raw.get("since", {}).items()}
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return Kernel(**values | {"since": since})


def version(text: str) -> Version:
    """Return "1.24.1" as (1, 24, 1), which compares as versions do."""
    return tuple(int(part) for part in text.split("."))


TARGETS: Mapping[str, Target] = _load()
"""The targets by name."""
DEFAULT = "cpu"
