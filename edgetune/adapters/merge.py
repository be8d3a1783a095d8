"""An adapter merged into its base: a new GGUF whose weights are W + scale * B A, or those that replace W.

The base's metadata is copied byte by byte, and tensors pass through one slice of rows at a time, so that memory stays
small for any model. Layout of a GGUF: gguf/read.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..disk import refuse_existing, replaced, require_room
from ..errors import FormatError, NumericsError, UsageError
from ..formats.gguf import Gguf, Tensor
from ..formats.gguf.read import BY_NAME
from ..llamacpp.quantizer import TYPES, encode, quantize_file
from .lora import Lora, Pair, stack_of
from .store import NO_WEIGHTS, check_fit

KEEP = "keep"
FLOATS = ("F32", "F16", "BF16")
_SLICE = 1 << 22  # weights in memory at a time


@dataclass(frozen=True)
class Merged:
    """The written file, its type, the number of changed tensors, its size in bytes."""

    path: Path
    to: str
    tensors: int
    bytes: int


def merge(base: Gguf, pairs: Lora, out: str | os.PathLike[str], to: str = "Q8_0", threads: int = 0,
          weights: Mapping[str, Tensor] = NO_WEIGHTS) -> Merged:
    """Write `base` with `pairs` merged in, and with `weights` in place of its tensors, to a new file `out`.

    to: a llama.cpp type such as Q8_0 or Q4_K_M (llama.cpp then chooses each tensor's format, as in llama-quantize);
    F32, F16 or BF16 for all matrices; or "keep": each tensor that pairs change is written in its earlier format, the
    others keep their bytes. threads: of llama.cpp's quantizer; 0: one a core that this process may use.

    Raises UsageError for an unknown type or if `out` exists, MismatchError if they do not fit, UnsupportedError
    for a tensor in a format that edgetune cannot read, NumericsError for merged weights that are not finite,
    EdgetuneError where the disk refuses; no file is left then.
    """
    path = Path(out)
    to = to if to == KEEP else to.upper()
    if to != KEEP and to not in TYPES:
        raise UsageError(f"the type {to} is unknown", f"choose from {KEEP}, {', '.join(TYPES)}")
    refuse_existing(path)
    check_fit(pairs, base, "the adapter", weights)
    if to == KEEP:
        _check_kept(base, pairs)
    if path.parent.is_dir():
        require_room(path.parent, disk_needed(base, pairs, to, weights))
    source = replace(base, tensors={**base.tensors, **weights})
    with replaced(path) as beside:
        if to == KEEP or to in FLOATS:
            _write(beside, base, source, pairs, to)
        else:
            _write_quantized(beside, base, source, pairs, to, threads)
    return Merged(path, to, len(_changed(pairs)) + len(weights), path.stat().st_size)


def disk_needed(base: Gguf, pairs: Lora, to: str, weights: Mapping[str, Tensor] = NO_WEIGHTS) -> int:
    """Bytes at most that `merge` writes: the new file, and the one with F16 from which llama.cpp makes another type."""
    source = replace(base, tensors={**base.tensors, **weights})
    if to == KEEP or to in FLOATS:
        return _file_bytes(base, _formats(source, pairs, to))
    largest = to if to in BY_NAME else "Q8_0"  # a mixture such as Q4_K_M
    return _file_bytes(base, _formats(source, pairs, KEEP, "F16")) + _file_bytes(base, _formats(source, pairs, largest))


def _file_bytes(base: Gguf, formats: dict[str, str]) -> int:
    return base.data_start + sum(prod(tensor.shape) // BY_NAME[formats[name]].block * BY_NAME[formats[name]].size
                                 for name, tensor in base.tensors.items())


def _check_kept(base: Gguf, pairs: Lora) -> None:
    """Refuses Q2_0, of which llama.cpp's encoder would lose most: its scale is the largest weight of a block."""
    for name in _changed(pairs):
        if (format := base.tensors[f"{name}.weight"].format) == "Q2_0":
            raise UsageError(f"{name} is {format}, which cannot be written again without losing most of it",
                             "merge to another type, such as Q4_K_M or Q8_0")


def _write_quantized(path: Path, base: Gguf, source: Gguf, pairs: Lora, to: str, threads: int) -> None:
    """Quantizes with llama.cpp, from a file whose changed tensors are F16, which is finer than any requested type."""
    floats = path.with_name(f"{path.name}.f16")
    try:
        _write(floats, base, source, pairs, KEEP, changed="F16")
        quantize_file(floats, path, to, threads)
    finally:
        floats.unlink(missing_ok=True)


def _write(path: Path, base: Gguf, source: Gguf, pairs: Lora, to: str, changed: str = "") -> None:
    """Writes the file in one pass over the tensors of `source`, which are the base's but for those that are replaced.
    changed: as of `_formats`.
    """
    formats = _formats(source, pairs, to, changed)
    changed_by = _changed(pairs)
    alignment = base.metadata.get("general.alignment", 32)
    assert isinstance(alignment, int)  # the reader has checked it
    with path.open("wb") as file:
        file.write(_header(base, formats, None if to == KEEP else TYPES[to], alignment))
        for name, tensor in source.tensors.items():
            for data in _data(tensor, changed_by.get(name.removesuffix(".weight"), {}), formats[name]):
                file.write(data)
            file.write(bytes(-file.tell() % alignment))


def _formats(source: Gguf, pairs: Lora, to: str, changed: str = "") -> dict[str, str]:
    """The format of each tensor. changed: replaces `to` for changed tensors."""
    formats = {}
    names = _changed(pairs)
    for name, tensor in source.tensors.items():
        formats[name] = tensor.format if to == KEEP or len(tensor.shape) == 1 else to
        if changed and name.removesuffix(".weight") in names:
            formats[name] = changed
    return formats


def _changed(pairs: Lora) -> dict[str, dict[int, Pair]]:
    """The pairs of each tensor that they change: of a matrix its own, at -1, of a stack one for each expert."""
    found: dict[str, dict[int, Pair]] = {}
    for name, pair in pairs.items():
        stack, expert = stack_of(name)
        found.setdefault(stack, {})[expert] = pair
    return found


# ---- the header ------------------------------------------------------------------------------------------------------


def _header(base: Gguf, formats: dict[str, str], file_type: int | None, alignment: int) -> bytes:
    """The base's header with its tensors in other formats."""
    header = base.data[: base.data_start].tobytes()
    kept = {name: tensor.format for name, tensor in base.tensors.items()}
    keys, found, _ = header.rpartition(_infos(base, kept, alignment))
    if not found:
        raise FormatError(f"the header of {base.path} is not laid out as its tensors say", "convert the model again")
    if file_type is not None:
        keys = _with_file_type(keys, file_type)
    header = keys + _infos(base, formats, alignment)
    return header + bytes(-len(header) % alignment)


def _infos(base: Gguf, formats: dict[str, str], alignment: int) -> bytes:
    """Name, sizes, format and offset of every tensor; the reader has checked that there are no gaps."""
    infos = b""
    offset = 0
    for name, tensor in base.tensors.items():
        format = BY_NAME[formats[name]]
        text = name.encode()
        n_dims = len(tensor.shape)
        infos += struct.pack("<Q", len(text)) + text
        infos += struct.pack(f"<I{n_dims}QIQ", n_dims, *reversed(tensor.shape), format.id, offset)
        end = offset + prod(tensor.shape) // format.block * format.size
        offset = -(-end // alignment) * alignment
    return infos


def _with_file_type(keys: bytes, file_type: int) -> bytes:
    """Sets general.file_type, which tools show; it is not added to a file without it."""
    name = b"general.file_type"
    before, key, after = keys.partition(struct.pack("<Q", len(name)) + name + struct.pack("<I", 4))
    return before + key + struct.pack("<I", file_type) + after[4:] if key else keys


# ---- the weights -----------------------------------------------------------------------------------------------------


def _data(tensor: Tensor, pairs: Mapping[int, Pair], format: str) -> Iterator[memoryview]:
    """The tensor's bytes in `format`, with the pairs' updates, a slice of rows at a time."""
    if not pairs and format == tensor.format:
        yield tensor.data.data
        return
    is_stack = len(tensor.shape) == 3
    for i in range(tensor.shape[0]) if is_stack else (-1,):
        pair = pairs.get(i)
        for place, part in (tensor.matrix(i) if is_stack else tensor).parts(_SLICE):
            weights = part.f32()
            if pair is not None:
                weights = weights + np.float32(pair.scale) * (pair.b[place] @ pair.a)
            yield _encoded(tensor.name, weights, format)


def _encoded(name: str, weights: NDArray[np.float32], format: str) -> memoryview:
    """weights [rows, K] as the format's bytes, by llama.cpp, which makes all of them."""
    limit = np.finfo(np.float16 if format == "F16" else np.float32).max
    if not np.abs(weights).max() <= limit:  # not so for NaN either
        raise NumericsError(f"{name} holds merged weights over {limit:g}, the most in {format}", "merge to F32")
    return encode(weights, format).data
