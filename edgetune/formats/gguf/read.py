"""GGUF in: a small strict reader of our own, because a GGUF is other people's bytes.

Layout, little endian: "GGUF", u32 version, u64 tensors, u64 keys | a key: string name, u32 type, value | a tensor:
string name, u32 dimensions, u64 sizes (fastest first), u32 type, u64 offset | padding | data, each tensor padded to
general.alignment. A string is u64 length and bytes; an array is u32 type, u64 count and its values. Sources: ggml's
docs/gguf.md, and ggml/src/gguf.cpp for what llama.cpp refuses.

No count, length, type or offset is believed before the bytes that it speaks of are inside the file, so opening costs
one pass over the header at most. Values stay in the mapping until they are read: a vocabulary as Python strings
would take tens of MiB.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...backends.cpu import Cpu
from ...backends.native import FORMATS, Format
from ...errors import FormatError, UnsupportedError
from ..named import find_model
from .file import OpenFile

_NAMED = (  # further formats, which edgetune opens and names; with FORMATS it computes
    ("Q8_1", 9, 32, 36), ("Q8_K", 15, 256, 292), ("IQ2_XXS", 16, 256, 66), ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98), ("IQ1_S", 19, 256, 50), ("IQ3_S", 21, 256, 110), ("IQ2_S", 22, 256, 82),
    ("I8", 24, 1, 1), ("I16", 25, 1, 2), ("I32", 26, 1, 4), ("I64", 27, 1, 8), ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56), ("TQ1_0", 34, 256, 54), ("TQ2_0", 35, 256, 66), ("NVFP4", 40, 64, 36),
    ("Q1_0", 41, 128, 18),
)
BY_NAME = {row[0]: Format(*row) for row in _NAMED} | FORMATS
TYPES = {fmt.id: fmt for fmt in BY_NAME.values()}

# Types of metadata values by GGUF's number, and numpy's codes. An array of u32 is called "[u32]".
_NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64")
VALUE_TYPES = dict(enumerate(_NAMES))
_CODES = {"u8": "<u1", "i8": "<i1", "u16": "<u2", "i16": "<i2", "u32": "<u4", "i32": "<i4", "f32": "<f4", "bool": "?",
          "u64": "<u8", "i64": "<i8", "f64": "<f8"}

# Real files stay far below these; they bound how many Python objects a hostile header can make.
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_KEY_LENGTH = 65_535  # docs/gguf.md
MAX_TENSOR_NAME = 63  # llama.cpp keeps 64 bytes, the last one zero
MAX_ALIGNMENT = 65_536
MAX_STRINGS = 1 << 22  # in an array: merges of the largest vocabularies are a tenth

_HEADER = Struct("<4sIQQ")
_U32 = Struct("<I")
_U64 = Struct("<Q")
_PIECE = 1 << 20  # bytes of the header that are hashed at a time
_BROKEN = "the file is damaged or incomplete: download or convert it again"


class _Entry(NamedTuple):
    type: str  # "u32", "str", "[f32]", ...
    n: int  # values, 1 unless it is an array
    pos: int  # where in the file the first value lies


class Metadata(Mapping[str, object]):
    """The file's keys; a value is int, float, bool, str or a list of one of these, decoded at each access.

    A list of strings may hold bytes that are not UTF-8 (tokens do); they come as surrogate escapes.
    """

    def __init__(self, data: mmap.mmap, entries: dict[str, _Entry]) -> None:
        self._data = data
        self._entries = entries

    def __getitem__(self, key: str) -> object:
        kind, count, pos = self._entries[key]
        element = kind.strip("[]")
        values: list[object] = []
        if element == "str":
            values = [raw.decode("utf-8", "surrogateescape") for raw in self._strings(count, pos)]
        elif count:
            values = np.frombuffer(self._data, _CODES[element], count, pos).tolist()
        return values if kind != element else values[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def type(self, key: str) -> str:
        """The stored type: "u32", "f32", "bool", "str", ..., or "[u32]" for an array."""
        return self._entries[key].type

    def count(self, key: str) -> int:
        """The number of values that an array has, without decoding it; 1 for a single value."""
        return self._entries[key].n

    def _strings(self, count: int, pos: int) -> Iterator[bytes]:
        for _ in range(count):
            begin = pos + 8
            pos = begin + _U64.unpack_from(self._data, pos)[0]
            yield self._data[begin:pos]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor as it is stored. `shape` is numpy's order, rows first; `data` is uint8, 1-D, in file order."""

    name: str
    shape: tuple[int, ...]
    format: str
    data: npt.NDArray[np.uint8]

    def f32(self) -> npt.NDArray[np.float32]:
        """The weights as float32 of `shape`; for F32 a view, else a copy. UnsupportedError if not in FORMATS."""
        if self.format not in FORMATS:
            raise UnsupportedError(f"tensor {self.name!r} is {self.format}", f"supported are {', '.join(FORMATS)}")
        if self.format == "F32":
            return self.data.view("<f4").reshape(self.shape)
        values = np.empty(self.shape, np.float32)
        Cpu(threads=1).dequantize(values, self.data, self.format)
        return values

    def taken(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """These rows [n, K] of a matrix. Errors: f32's."""
        stored = self.data.reshape(self.shape[0], -1)[list(rows)]
        return replace(self, shape=(len(rows), self.shape[1]), data=stored.reshape(-1)).f32()

    def matrix(self, i: int) -> Tensor:
        """The i-th matrix of a stack of matrices."""
        size = self.data.nbytes // self.shape[0]
        return replace(self, shape=self.shape[1:], data=self.data[i * size:(i + 1) * size])

    def parts(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Yields some rows as a tensor [n, K] of about `size` weights, with their place among all rows."""
        width = self.shape[-1]
        n = prod(self.shape[:-1])
        stored = self.data.reshape(n, -1)
        step = max(1, size // width)
        for begin in range(0, n, step):
            part = stored[begin:begin + step]
            yield slice(begin, begin + len(part)), replace(self, shape=(len(part), width), data=part.reshape(-1))


@dataclass(frozen=True, eq=False)
class Gguf:
    """An opened file. `data` is the whole `file` (uint8, read-only); its tensors begin at byte `data_start`."""

    path: Path
    version: int
    metadata: Metadata
    tensors: dict[str, Tensor]
    data: npt.NDArray[np.uint8]
    data_start: int
    file: OpenFile

    def release(self) -> None:
        """Let go of the file's pages that this process has read; those that it touches again are read again."""
        self.file.mapping.madvise(mmap.MADV_DONTNEED)

    def offset(self, tensor: Tensor) -> int:
        """The byte of the file at which a tensor begins."""
        return int(tensor.data.ctypes.data - self.data.ctypes.data)

    def read(self, tensor: Tensor) -> Tensor:
        """The same tensor, its bytes read into memory and not mapped."""
        return replace(tensor, data=self.file.read(self.offset(tensor), tensor.data.nbytes))

    @cached_property
    def fingerprint(self) -> str:
        """See the function of this name."""
        digest = hashlib.sha256(_U64.pack(self.data.size))
        for begin in range(0, self.data_start, _PIECE):
            digest.update(self.file.read(begin, min(_PIECE, self.data_start - begin)).data)
        for tensor in self.tensors.values():
            begin = self.offset(tensor)
            end = begin + tensor.data.nbytes
            first_end = min(begin + 4096, end)
            last_begin = max(end - 4096, begin)
            digest.update(self.file.read(begin, first_end - begin).data)
            digest.update(self.file.read(last_begin, end - last_begin).data)
        return f"sha256:{digest.hexdigest()}"

    @cached_property
    def architecture(self) -> str:
        """general.architecture: "llama", "qwen2", ...; FormatError if the file does not say."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str) or not value:
            raise FormatError(f"{self.path}: general.architecture is {value!r}, it must name one", _BROKEN)
        return value

    @property
    def types(self) -> dict[str, str]:
        """The stored type of every key, as write_gguf takes it."""
        return {key: self.metadata.type(key) for key in self.metadata}


def open_gguf(path: str | os.PathLike[str], file: OpenFile | None = None) -> Gguf:
    """Map a GGUF (version 2 or 3, little endian) read-only and check its whole structure. path: or a model's name, see
    named.py. file: `path`, open already.

    FormatError: no such file, not a GGUF, truncated or corrupt. UnsupportedError: sound, but not for us.
    """
    path = Path(path) if file else find_model(path)
    file = file or OpenFile(path, "name a .gguf file", _HEADER.size)
    cursor = _Cursor(path, file.mapping)
    version, n_tensors, n_keys = _read_counts(cursor)
    entries: dict[str, _Entry] = {}
    for i in range(n_keys):
        key = cursor.name(f"the name of key {i}", MAX_KEY_LENGTH)
        if key in entries:
            raise cursor.bad(f"key {key!r} occurs twice, allowed is once")
        entries[key] = _read_value(cursor, f"key {key!r}")
    metadata = Metadata(cursor.data, entries)
    places, data_start = _read_tensors(cursor, n_tensors, _alignment(cursor, metadata))
    data: npt.NDArray[np.uint8] = np.frombuffer(cursor.data, np.uint8)
    tensors = {
        name: Tensor(name, shape, fmt, data[data_start + start : data_start + end])
        for name, (shape, fmt, start, end) in places.items()
    }
    return Gguf(path, version, metadata, tensors, data, data_start, file)


def fingerprint(gguf: Gguf) -> str:
    """"sha256:..." over the file's size, its whole header (keys, values, tensor names, shapes, types, offsets) and the
    first and last 4 KiB of every tensor: some MiB are read, also of a 4 GB file. It tells one model from another; a
    byte that has flipped in the middle of a tensor it does not see.
    """
    return gguf.fingerprint


class _Cursor:
    """Reads forward through the mapping; whatever it returns is inside the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.pos = 0

    def bad(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: {what}", _BROKEN)

    def step(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they begin."""
        begin = self.pos
        end = self.pos + count
        if end > self.size:
            raise self.bad(f"{what} ends at byte {end}, but the file has {self.size} bytes")
        self.pos = end
        return begin

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.step(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.step(8, what))[0])

    def string(self, what: str) -> str:
        length = self.u64(what)
        begin = self.step(length, what)
        raw = self.data[begin : begin + length]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.bad(f"{what} is not UTF-8: {raw[:40]!r}") from None

    def name(self, what: str, limit: int) -> str:
        """A string that C code must read as we do and a terminal must survive: printable characters only."""
        begin = self.pos
        text = self.string(what)
        if not 1 <= (length := self.pos - begin - 8) <= limit:
            raise self.bad(f"{what} has {length} bytes, allowed are 1 to {limit}")
        if not text.isprintable():
            raise self.bad(f"{what} has unprintable characters: {text[:40]!r}")
        return text

    def skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings. The loop meets every token of a vocabulary, so it is bare."""
        pos = self.step(8 * count, what)  # each string has at least its length
        if count > MAX_STRINGS:
            raise self.bad(f"{what} has {count} strings, allowed are {MAX_STRINGS}")
        last = self.size - 8
        length = _U64.unpack_from
        for i in range(count):
            if pos > last:
                raise self.bad(f"string {i} of {count} of {what} begins at byte {pos}, the file has {self.size} bytes")
            pos += 8 + length(self.data, pos)[0]
        self.pos = pos
        self.step(0, what)


def _read_counts(cursor: _Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of keys."""
    magic = cursor.data[:4]
    if magic != b"GGUF":
        raise FormatError(
            f"{cursor.path} is not a GGUF: it begins with {magic!r}, not b'GGUF'",
            "choose a .gguf file, or make one with llama.cpp's convert_hf_to_gguf.py",
        )
    version, n_tensors, n_keys = _HEADER.unpack_from(cursor.data, cursor.step(_HEADER.size, "the header"))[1:]
    if version and version & 0xFFFF == 0:
        swapped = int.from_bytes(_U32.pack(version), "big")
        raise UnsupportedError(
            f"{cursor.path} is a big-endian GGUF (version {swapped}, bytes swapped), supported is little endian",
            "convert it with gguf-py's gguf_convert_endian.py",
        )
    if version not in (2, 3):
        raise UnsupportedError(
            f"{cursor.path} is GGUF version {version}, supported are 2 and 3", "convert it with a current llama.cpp"
        )
    for what, count, limit in (("keys", n_keys, MAX_KEYS), ("tensors", n_tensors, MAX_TENSORS)):
        if count > limit:
            raise cursor.bad(f"the header counts {count} {what}, allowed are {limit}")
    return version, n_tensors, n_keys


def _read_value(cursor: _Cursor, what: str) -> _Entry:
    kind = cursor.u32(f"the type of {what}")
    count = 1
    if array := VALUE_TYPES.get(kind) == "arr":
        kind = cursor.u32(f"the type of {what}")
        count = cursor.u64(f"the count of {what}")
    name = VALUE_TYPES.get(kind)
    if name is None:
        raise cursor.bad(f"{what} has the value type {kind}, known are 0 to {len(VALUE_TYPES) - 1}")
    if name == "arr":
        raise cursor.bad(f"{what} is an array of {count} arrays, allowed are arrays of single values")
    entry = _Entry(f"[{name}]" if array else name, count, cursor.pos)
    if entry.type == "[str]":
        cursor.skip_strings(count, what)
    elif name == "str":
        cursor.string(what)
    else:
        begin = cursor.step(count * np.dtype(_CODES[name]).itemsize, what)
        if name == "bool" and count and (top := np.frombuffer(cursor.data, np.uint8, count, begin).max()) > 1:
            raise cursor.bad(f"{what} has the truth value {top}, allowed are 0 and 1")
    return entry


def _alignment(cursor: _Cursor, metadata: Metadata) -> int:
    key = "general.alignment"
    value = metadata.get(key, 32)
    if not isinstance(value, int) or (key in metadata and metadata.type(key) != "u32"):
        raise cursor.bad(f"{key} is of type {metadata.type(key)}, it must be u32")
    if not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.bad(f"{key} is {value}, allowed are powers of two from 8 to {MAX_ALIGNMENT}")
    return value


_Place = tuple[tuple[int, ...], str, int, int]  # shape, format, first byte and end, counted from data_start


def _read_tensors(cursor: _Cursor, n_tensors: int, alignment: int) -> tuple[dict[str, _Place], int]:
    """Every tensor's place and where the data begins. As for llama.cpp, each tensor must begin where the last ended."""
    places: dict[str, _Place] = {}
    expected = 0
    end = 0
    for i in range(n_tensors):
        name = cursor.name(f"the name of tensor {i}", MAX_TENSOR_NAME)
        what = f"tensor {name!r}"
        if name in places:
            raise cursor.bad(f"{what} occurs twice, allowed is once")
        shape, fmt = _read_shape(cursor, what)
        offset = cursor.u64(f"the offset of {what}")
        if offset != expected:
            raise cursor.bad(f"{what} begins at offset {offset}, but the tensors before it end at {expected}")
        end = offset + prod(shape) // fmt.block * fmt.size
        places[name] = (shape, fmt.name, offset, end)
        expected = _padded(end, alignment)
    data_start = _padded(cursor.pos, alignment) if n_tensors else cursor.pos
    if data_start + end > cursor.size:
        raise cursor.bad(f"the tensors end at byte {data_start + end}, but the file has {cursor.size} bytes")
    return places, data_start


def _read_shape(cursor: _Cursor, what: str) -> tuple[tuple[int, ...], Format]:
    n_dims = cursor.u32(f"the dimensions of {what}")
    if not 1 <= n_dims <= 4:
        raise cursor.bad(f"{what} has {n_dims} dimensions, allowed are 1 to 4")
    sizes = [cursor.u64(f"the shape of {what}") for _ in range(n_dims)]
    if 0 in sizes:
        raise cursor.bad(f"{what} has the shape {sizes[::-1]}, every dimension must be at least 1")
    kind = cursor.u32(f"the type of {what}")
    if kind not in TYPES:
        raise UnsupportedError(
            f"{cursor.path}: {what} has the ggml type {kind}, which is unknown here or was removed from GGUF",
            f"convert the model to one of {', '.join(FORMATS)}",
        )
    fmt = TYPES[kind]
    if sizes[0] % fmt.block:
        raise cursor.bad(f"{what} has rows of {sizes[0]} weights, {fmt.name} needs a multiple of {fmt.block}")
    return tuple(reversed(sizes)), fmt


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
