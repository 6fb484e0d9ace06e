"""One ONNX language model in ONNX Runtime, fed with tokens alone."""

from __future__ import annotations

import ctypes
import re
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from onnx_tailor.errors import InputsError, ModelError, UsageError
from onnx_tailor.graph.file.load import load
from onnx_tailor.verify.embedder import INPUT, embedder_of
from onnx_tailor.verify.facts import head_size, is_over_vocabulary, table_rows, windows
from onnx_tailor.verify.feeds import Cache, Input, Sizes, feeds, is_past

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["LanguageModel", "Optimization"]

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Optimization = Literal["disabled", "basic", "extended", "all"]

_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_FATAL_ONLY = 4
"""Errors are raised besides, and told in our words."""
_CONTRADICTION = "attempting to re-use buffer"
"""What ONNX Runtime says where two values have the same declared length and different lengths."""
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where ONNX Runtime looks for the weights of a model that it is given as bytes."""
# ONNX Runtime has no common base of its exceptions, and raises RuntimeError and ValueError besides.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(each for each in vars(ort_errors).values() if isinstance(each, type) and issubclass(each, Exception)),
)


class LanguageModel:
    """An ONNX model whose inputs are token ids and what follows from them.

    Holds the session, so about the model's bytes in memory.
    """

    def __init__(
        self,
        path: Path,
        *,
        provider: str = "CPUExecutionProvider",
        optimization: Optimization = "all",
        role: str = "model",
        graph: bytes | None = None,
        folder: Path | None = None,
    ) -> None:
        """Load the model; `role` is what messages call it.

        `graph` is a serialized model that runs in the place of the file's own, over the weights in `folder`.

        Raises:
            ModelError: ONNX Runtime cannot load it.
            UsageError: this machine's ONNX Runtime has no such provider.

        """
        self.path = path
        self.role = role
        self._open = partial(_session, path, provider, _LEVELS[optimization], role, graph, folder)
        self._session = self._open()
        self.note = ""
        """What a run needed that a correct file does not; empty where there is nothing to say."""
        self.inputs = tuple(Input(each.name, each.type, tuple(each.shape)) for each in self._session.get_inputs())
        self._output_shapes = {each.name: tuple(each.shape) for each in self._session.get_outputs()}
        self.outputs = tuple(self._output_shapes)
        self._present = _present_names(self.inputs, self.outputs)
        embedder = embedder_of(path) if any(each.name == INPUT for each in self.inputs) else None
        self._embedder = None if embedder is None else LanguageModel(embedder, provider=provider, role=f"{role}'s")
        states = [each for each in self.inputs if is_past(each.name)]
        open_size = any(len(e.shape) == 4 and not isinstance(e.shape[3], int) for e in states)
        windowed = any("sliding" in str(symbol) for each in states for symbol in each.shape)
        self._sizes = Sizes(
            head_size(path) if open_size or any("kv_cache_dim" in each.shape for each in states) else None,
            windows(path) if windowed else {},
        )

    @cached_property
    def logits(self) -> str | None:
        """Name of the output that holds the logits [b, s, V], or those of the last token [b, 1, V].

        None where there is none over the vocabulary: for an encoder, or a classifier.
        """
        name = next((name for name in self.outputs if "logits" in name), None)
        if name is None:
            return None
        shape = self._output_shapes[name] or self.prefill(np.zeros((1, 2), np.int64))[name].shape
        return name if is_over_vocabulary(shape, self._table_rows) else None

    @property
    def has_past(self) -> bool:
        """Whether the model takes and yields the states of the tokens before."""
        return bool(self._present)

    @property
    def vocabulary_size(self) -> int:
        """How many ids the model knows: the rows of its table, and no more than it predicts, found by a run if need be.

        Raises:
            ModelError: the model has neither logits nor a table that the ids gather from.

        """
        if self.logits is None:
            if self._table_rows is None:
                raise ModelError(f"The vocabulary of the {self.role} {self.path} cannot be found; give the tokens.")
            return self._table_rows
        shape = self._output_shapes[self.logits]
        size = shape[-1] if shape else None
        if not isinstance(size, int):
            size = int(self.prefill(np.zeros((1, 2), np.int64))[self.logits].shape[-1])
        return size if self._table_rows is None else min(size, self._table_rows)

    @property
    def knows_vocabulary(self) -> bool:
        """Whether `vocabulary_size` can be found."""
        return self.logits is not None or self._table_rows is not None

    @cached_property
    def _table_rows(self) -> int | None:
        return table_rows(self.path)

    def prefill(
        self, ids: Ids, past: Cache | None = None, *, given: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run ids [b, s] at once, after `past` where it is given; return every output by name.

        `given` are fed in the place of what the inputs of these names would be, also for initializers that the graph
        lets a run override. bfloat16 outputs are arrays of ml_dtypes.bfloat16.

        Raises:
            InputsError: an input cannot be filled.
            ModelError: the run fails.

        """
        try:
            given = given or {}
            values = feeds(self.inputs, ids, past, self._sizes, given) | dict(given)
            if self._embedder is not None:
                values[INPUT] = next(iter(self._embedder.prefill(ids).values()))
        except ModelError as error:
            raise InputsError(f"The {self.role} {self.path} cannot be run. {error}") from error
        try:
            results = self._run({name: _to_runtime(value) for name, value in values.items()})
            outputs = {name: _to_numpy(value) for name, value in zip(self.outputs, results, strict=True)}
        except _ORT_ERRORS as error:
            raise ModelError(
                f"The {self.role} {self.path} loads in ONNX Runtime but does not run: {_first_line(error)}"
            ) from error
        self._clear(outputs, (past.length if past else 0) + ids.shape[1])
        return outputs

    def _run(self, values: dict[str, Any]) -> Any:
        try:
            return self._session.run_with_ort_values(list(self.outputs), values)
        except _ORT_ERRORS as error:
            if self.note or _CONTRADICTION not in str(error):
                raise
        self.note = (
            f"The {self.role} {self.path.name} runs in ONNX Runtime only with enable_mem_reuse off: it declares one "
            "symbolic length for values of different lengths."
        )
        self._session = self._open(reuse=False)
        return self._session.run_with_ort_values(list(self.outputs), values)

    def _clear(self, outputs: dict[str, Array], total: int) -> None:
        """Put zeros where a sliding window's buffer holds no token yet: ONNX Runtime leaves what was in memory."""
        for name, capacity in self._sizes.windows.items():
            present = self._present.get(name)
            if present is not None and total < capacity:
                outputs[present] = outputs[present].copy()
                outputs[present][:, :, total:] = 0

    def decode(self, ids: Ids, past: Cache) -> tuple[dict[str, Array], Cache]:
        """Run ids [b, s] after `past`, usually one token; return the outputs and the cache that follows.

        Raises:
            ModelError: as `prefill`.

        """
        outputs = self.prefill(ids, past)
        return outputs, self.cache(outputs, ids, past)

    def cache(self, outputs: dict[str, Array], ids: Ids, past: Cache | None = None) -> Cache:
        """Return the cache after a run of ids [b, s] that began from `past` and gave `outputs`.

        A state the run did not give anew, or gave empty, is the one before: exports that keep the encoder's
        keys and values in the cache yield them once.
        """
        before = dict(past.values) if past else {}
        after = {
            name: outputs[present]
            for name, present in self._present.items()
            if outputs[present].size or name not in before
        }
        return Cache((past.length if past else 0) + ids.shape[1], before | after)


def _session(
    path: Path,
    provider: str,
    level: Any,
    role: str,
    graph: bytes | None,
    folder: Path | None,
    *,
    reuse: bool = True,
) -> Any:
    """Open the session, on `provider` and nothing else but the CPU."""
    if provider not in ort.get_available_providers():
        known = ", ".join(ort.get_available_providers())
        raise UsageError(f"ONNX Runtime has no {provider} here; it has {known}.")
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = _FATAL_ONLY
    # The arena keeps the largest outputs it ever held, rounded up to a power of two: up to 512 MiB for one window
    # of a 262144-word vocabulary.
    options.enable_cpu_mem_arena = False
    options.enable_mem_reuse = reuse
    if not path.is_file():
        raise ModelError(f"The {role} {path} is not a file.")
    if graph is not None:
        options.add_session_config_entry(_DATA_FOLDER, str((folder or path.parent).resolve()))
    try:
        session = ort.InferenceSession(graph or str(path), options, providers=[provider])
    except _ORT_ERRORS as error:
        if graph is None:
            load(path)  # says in a sentence what is wrong with the files, if anything is
        raise ModelError(f"The {role} {path} does not load in ONNX Runtime: {_first_line(error)}") from error
    if session.get_providers()[0] != provider:  # ONNX Runtime falls back to the CPU without an error
        raise UsageError(
            f"ONNX Runtime lists {provider} but cannot start it here; its libraries or its device are missing."
        )
    return session


def _present_names(inputs: tuple[Input, ...], outputs: tuple[str, ...]) -> dict[str, str]:
    """Map each state's input to the output that continues it; empty for a model without states."""
    states = [each.name for each in inputs if is_past(each.name)]
    named = {}
    for name in states:
        tried = [name.replace(old, "present", 1) for old in ("past_key_values", "past")]
        tried.append(name.replace("past", "present", 1))
        found = next((each for each in tried if each in outputs), None)
        if found is not None:
            named[name] = found
    if named:
        return named
    rest = [name for name in outputs if "logits" not in name]
    return dict(zip(states, rest, strict=True)) if len(states) == len(rest) else {}


def _to_runtime(value: Array) -> Any:
    """Wrap an array; bfloat16 goes as its bits, since numpy has no such type."""
    contiguous = np.ascontiguousarray(value).reshape(value.shape)
    if contiguous.dtype == ml_dtypes.bfloat16:
        bits = contiguous.view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(contiguous)


def _to_numpy(value: Any) -> Array:
    """Return an output's array; bfloat16 is copied as bytes, since ONNX Runtime does not convert it."""
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    if value.device_name() != "cpu":
        raise ModelError("A bfloat16 output lies on the device; ONNX Runtime cannot copy it to the host.")
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape)))
    return np.frombuffer(raw, dtype=ml_dtypes.bfloat16).reshape(shape)


def _first_line(error: Exception) -> str:
    """Return the first line of ONNX Runtime's message, without its source file and line."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"\s*/\S+\.(?:cc|h|cu):\d+\s.*?\)\s*(?=\S)", " ", text.splitlines()[0])
