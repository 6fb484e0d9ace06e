"""What every pass is: a frozen dataclass whose fields are its options, and so the recipe's keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_tailor.graph.model import TailorModel
    from onnx_tailor.progress import Progress
    from onnx_tailor.report import Change, Skip
    from onnx_tailor.targets import Target

__all__ = ["Circumstances", "Pass"]


@dataclass(frozen=True)
class Circumstances:
    """What a pass may ask about the run that it is prepared for."""

    target: Target
    scratch: Path
    """A folder that lasts as long as the run."""
    progress: Progress
    dry_run: bool = False
    """Nothing will be written: what only the values of weights depend on need not be found out."""
    one_store: bool = True
    """The files of a set share one data file, so that a weight that several have is stored once."""
    before: tuple[Pass, ...] = ()
    """The recipe's passes that ran already."""
    after: tuple[Pass, ...] = ()
    """Those that will run then."""


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """A rewrite of one model. Subclasses add their options as fields and keep no other state.

    A field's docstring (a string literal below it) is its help text; `__post_init__` checks what a type cannot say
    and raises `OptionError`.
    """

    name: ClassVar[str]
    """The pass's name in a recipe."""
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of options of which one alone may be given; one from the command line takes the place of the recipe's."""

    def prepare(self, model: TailorModel, circumstances: Circumstances) -> Pass:
        """Return the pass that is applied in this one's place: with what takes long to find out as its options.

        Most passes have nothing to find out.

        Raises:
            ModelError: the model cannot be run.
            OptionError: an option does not fit this model.
        """
        return self

    def prepare_set(self, models: Sequence[TailorModel], circumstances: Circumstances) -> Sequence[Pass]:
        """Return for each file of a set the pass that is applied to it. None of them is rewritten by this step yet.

        Raises:
            ModelError: a model cannot be run.
            OptionError: an option does not fit the set.
        """
        return [self.prepare(model, circumstances) for model in models]

    @abstractmethod
    def apply(self, model: TailorModel, target: Target) -> Iterator[Change | Skip]:
        """Rewrite `model` in place, yielding a Change or a Skip for every candidate.

        Raises:
            ModelError: the model cannot be rewritten as asked.
            OptionError: an option does not fit this model, as a pattern that matches nothing.
        """
