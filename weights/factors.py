"""Factorized second moments: computed once for each input of a projection, when its first tile needs them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

from onnx_tailor.errors import ModelError
from onnx_tailor.quant import Factor, Moments, factorize

_KEPT = 2
"""Factors that stay in memory: tiles come weight by weight, and one weight ends while the next begins."""


@dataclass(frozen=True, eq=False)
class SharedFactor:
    """The factor of one input; weights that read it share the object. Equal to itself alone."""

    name: str
    """The input's name, for messages."""
    source: Hashable
    """What it is computed from, for the journal of a run."""
    load: Callable[[], Moments] = field(compare=False)
    """Reads what is known of the input."""
    cache: FactorCache = field(compare=False)
    drifts: bool = False
    """Whether the weights make up for the drift of the input."""

    def get(self) -> Factor:
        """Return the factor; the first caller computes it, and others wait.

        Raises:
            ModelError: the second moments are not usable.
        """
        return self.cache.get(self)

    def __reduce__(self) -> tuple[Callable[..., SharedFactor], tuple[object, ...]]:
        """Be one object on another machine too, with that machine's cache."""
        return _elsewhere, (self.name, self.source, self.load, self.drifts)


@dataclass(frozen=True, eq=False)
class FactorCache:
    """Holds the factors used last, for all threads."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _factors: OrderedDict[SharedFactor, Future[Factor]] = field(default_factory=OrderedDict)

    def get(self, key: SharedFactor) -> Factor:
        """Return the factor of `key`."""
        with self._lock:
            found = self._factors.get(key)
            mine = found is None
            if found is None:
                found = self._factors[key] = Future()
            self._factors.move_to_end(key)
            while len(self._factors) > _KEPT:
                self._factors.popitem(last=False)
        if mine:
            try:
                known = key.load()
                found.set_result(factorize(known.hessian, drift=known.drift))
            except ValueError as error:
                found.set_exception(
                    ModelError(f"the second moments of the input {key.name} cannot be used: {error}; calibrate again")
                )
            except BaseException as error:
                found.set_exception(error)
                raise
        return found.result()


_CACHE = FactorCache()
"""That of a process which carries out another's tasks."""
_KNOWN: dict[Hashable, SharedFactor] = {}


def _elsewhere(name: str, source: Hashable, load: Callable[[], Moments], drifts: bool) -> SharedFactor:
    return _KNOWN.setdefault(source, SharedFactor(name, source, load, _CACHE, drifts))
