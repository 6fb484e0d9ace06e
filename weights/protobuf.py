"""Read an ONNX file without its weights.

`onnx.load` copies every embedded weight into memory. This module walks the protobuf wire format instead and hands
back the same message with each large tensor's bytes replaced by an external-data reference into the file itself, so
that an embedded weight and an external one are the same thing to the rest of the program: a range of a file.

Wire format: https://protobuf.dev/programming-guides/encoding/. Field numbers: onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnx_tailor.errors import ModelError
from onnx_tailor.weights.files import require_ordinary

INLINE_LIMIT = 1024
"""Tensors of fewer bytes stay inside the ONNX file, read and written whole."""

_WINDOW = 1 << 16
"""Bytes that are read at once while the tags of a file are followed."""
_POINTER = b"version https://git-lfs"
"""How the text begins that stands in a model's place where Git LFS has not fetched it."""
_MAX_DEPTH = 100
"""Messages within messages: protobuf's own parsers stop there."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class _Message:
    """Which fields of a message lead to tensors."""

    name: str
    children: dict[int, _Message] = field(default_factory=dict)


_TENSOR = _Message("TensorProto")
_ATTRIBUTE = _Message("AttributeProto")
_NODE = _Message("NodeProto", {5: _ATTRIBUTE})
_GRAPH = _Message("GraphProto", {1: _NODE, 5: _TENSOR})
_FUNCTION = _Message("FunctionProto", {7: _NODE})
_MODEL = _Message("ModelProto", {7: _GRAPH, 25: _FUNCTION})
_ATTRIBUTE.children.update({5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH})

# The fields of TensorProto whose packed bytes are the little-endian values themselves.
_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA = 9, 4, 10
_VALUE_FIELDS = frozenset({_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA})


class _MalformedError(Exception):
    """The bytes are not a protobuf message."""


class _Bytes:
    """A file's bytes by index and by slice.

    No memory map: mapped pages count as the process's memory, and a file cut off while it is mapped kills the process.
    """

    def __init__(self, file: FileIO, size: int) -> None:
        self._file = file
        self.size = size
        self._window = b""
        self._start = 0

    def __getitem__(self, at: int) -> int:
        index = at - self._start
        if not 0 <= index < len(self._window):
            self._window, self._start, index = self.read(at, min(at + _WINDOW, self.size)), at, 0
        return self._window[index]

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`."""
        self._file.seek(start)
        content = bytearray()
        while len(content) < stop - start:
            chunk = self._file.read(stop - start - len(content))
            if not chunk:
                raise _MalformedError(f"it ends at byte {start + len(content)} while it is read")
            content += chunk
        return bytes(content)


def read_skeleton(path: Path) -> onnx.ModelProto:
    """Return the model of `path` with its large embedded tensors as references into `path.name`.

    Raises:
        ModelError: the file is missing, empty, cut off, or no ONNX model.
    """
    try:
        require_ordinary(path)
        with FileIO(path) as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ModelError(f"{path}: the file is empty; export or download it again")
            if file.seek(0) == 0 and file.read(len(_POINTER)) == _POINTER:
                raise ModelError(f"{path}: is a Git LFS pointer, not the model; fetch the model with `git lfs pull`")
            skeleton = _strip(_Bytes(file, size), path.name)
        model = onnx.ModelProto()
        model.ParseFromString(skeleton)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (_MalformedError, DecodeError) as error:
        raise ModelError(
            f"{path}: not an ONNX model, or cut off ({error}); compare its size with the original's"
        ) from error
    if not model.ir_version or not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{path}: not an ONNX model (it has no IR version, graph or opset)")
    return model


def _strip(data: _Bytes, location: str) -> bytes:
    parts = _rewrite(data, 0, data.size, _MODEL, location, 0)
    return b"".join(data.read(part.start, part.stop) if isinstance(part, slice) else part for part in parts)


def _rewrite(data: _Bytes, start: int, end: int, message: _Message, location: str, depth: int) -> list[slice | bytes]:
    """Return the message between `start` and `end` as ranges to copy and bytes to insert; one range if all of it."""
    if depth > _MAX_DEPTH:
        raise _MalformedError(f"its messages are nested more than {_MAX_DEPTH} deep")
    if message is _TENSOR:
        return _rewrite_tensor(data, start, end, location)
    parts: list[slice | bytes] = []
    kept = start  # what follows here is copied as it stands, up to the next field that is not
    for number, wire, begin, value, stop in _fields(data, start, end):
        child = message.children.get(number) if wire == _BYTES and stop - value >= INLINE_LIMIT else None
        if child is None:
            continue
        inner = _rewrite(data, value, stop, child, location, depth + 1)
        if inner != [slice(value, stop)]:
            parts += [slice(kept, begin), _tag(number), _varint(sum(_length(part) for part in inner)), *inner]
            kept = stop
    return [*parts, slice(kept, end)]


def _rewrite_tensor(data: _Bytes, start: int, end: int, location: str) -> list[slice | bytes]:
    fields = list(_fields(data, start, end))
    large = [f for f in fields if f[0] in _VALUE_FIELDS and f[1] == _BYTES and f[4] - f[3] >= INLINE_LIMIT]
    if len(large) != 1:  # values in several chunks are legal and rare: leave them to protobuf
        return [slice(start, end)]
    parts: list[slice | bytes] = [slice(f[2], f[4]) for f in fields if f is not large[0]]
    value, stop = large[0][3], large[0][4]
    reference = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, text in _reference(location, value, stop - value).items():
        reference.external_data.add(key=key, value=text)
    return [*parts, reference.SerializeToString()]


def _reference(location: str, offset: int, length: int) -> Mapping[str, str]:
    return {"location": location, "offset": str(offset), "length": str(length)}


def _fields(data: _Bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (field number, wire type, begin of the tag, begin of the value, end) of each field."""
    at = start
    while at < end:
        begin = at
        key = data[at]
        at += 1
        if key > 0x7F:  # most are of one byte
            key, at = _read_varint(data, begin, end)
        number, wire = key >> 3, key & 7
        if wire == _BYTES:
            size, at = _read_varint(data, at, end)
        elif wire == _VARINT:
            size = _read_varint(data, at, end)[1] - at
        elif wire in {_FIXED64, _FIXED32}:
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _MalformedError(f"no protobuf field at byte {begin}")
        if number == 0 or at + size > end:
            raise _MalformedError(f"the field at byte {begin} ends outside its message")
        yield number, wire, begin, at, at + size
        at += size


def _read_varint(data: _Bytes, at: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        if byte < 0x80:
            return result | byte << shift, at
        result |= (byte & 0x7F) << shift
        shift += 7
    raise _MalformedError(f"no end of the number before byte {at}")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _BYTES)


def _length(part: slice | bytes) -> int:
    return part.stop - part.start if isinstance(part, slice) else len(part)
