"""An adapter merged into its base: a new GGUF whose weights are W + scale * B A.

The base's metadata is copied byte by byte and tensors pass through one slice of rows at a time, so that memory stays
small whatever the model's size. Layout of a GGUF: gguf/read.py.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import llamacpp
from .adapter import check_fit
from .disk import refuse_existing, replaced
from .errors import EdgetuneError, FormatError, NumericsError, UsageError
from .gguf import Gguf, Tensor
from .gguf.read import TYPES as GGML_TYPES
from .lora import Lora, Pair

KEEP = "keep"
# What a whole file is made of: llama.cpp's name -> its number (llama_ftype), those that need no importance matrix.
TYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 12, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K": 15, "Q4_K_S": 14, "Q4_K_M": 15,
    "Q5_K": 17, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
_FORMATS = {format.name: format for format in GGML_TYPES.values()}
_FLOATS = ("F32", "F16", "BF16")
_SLICE = 1 << 22  # weights in memory at a time


@dataclass(frozen=True)
class Merged:
    """What was written: the file, its type, how many tensors were changed, its size in bytes."""

    path: Path
    to: str
    tensors: int
    bytes: int


def merge(base: Gguf, pairs: Lora, out: str | os.PathLike[str], to: str = "Q8_0", threads: int = 0) -> Merged:
    """Write `base` with `pairs` merged in to a new file `out`.

    to: a llama.cpp type such as Q8_0 or Q4_K_M (each tensor's format is then llama.cpp's choice, as in llama-quantize);
    F32, F16 or BF16 for all matrices; or "keep": each changed tensor goes back to the format it had, the others keep
    their bytes. threads: of llama.cpp's quantizer, 0: one a core that this process may use.

    Raises UsageError for an unknown type or if `out` exists, MismatchError if the pairs do not fit, UnsupportedError
    for a tensor in a format that edgetune cannot read, NumericsError for merged weights that are not finite,
    EdgetuneError where the disk refuses; nothing is left behind then.
    """
    path, to = Path(out), to if to == KEEP else to.upper()
    if to != KEEP and to not in TYPES:
        raise UsageError(f"the type {to} is unknown", f"choose from {KEEP}, {', '.join(TYPES)}")
    refuse_existing(path)
    check_fit(pairs, base, "the adapter")
    with replaced(path) as beside:
        if to == KEEP or to in _FLOATS:
            _write(beside, base, pairs, to)
        else:
            _write_quantized(beside, base, pairs, to, threads or len(os.sched_getaffinity(0)))
    return Merged(path, to, len(pairs), path.stat().st_size)


def _write_quantized(path: Path, base: Gguf, pairs: Lora, to: str, threads: int) -> None:
    """By llama.cpp, from a file in which the changed tensors are F16: finer than any type it is asked for."""
    floats = path.with_name(f"{path.name}.f16")
    try:
        _write(floats, base, pairs, KEEP, changed="F16")
        llama = llamacpp.load()
        settings = llama.llama_model_quantize_default_params()
        settings.ftype, settings.nthread, settings.allow_requantize = TYPES[to], threads, True
        llamacpp.complaint()
        if llama.llama_model_quantize(os.fsencode(floats), os.fsencode(path), ctypes.byref(settings)):
            raise EdgetuneError(f"llama.cpp cannot write {to} to {path}: {llamacpp.complaint()}",
                                "free some space, or choose another type")
    finally:
        floats.unlink(missing_ok=True)


def _write(path: Path, base: Gguf, pairs: Lora, to: str, changed: str = "") -> None:
    """One pass over the base. changed: the format of changed tensors instead of what `to` says."""
    formats = {}
    for name, tensor in base.tensors.items():
        matrix_format = tensor.format if to == KEEP else to
        formats[name] = tensor.format if len(tensor.shape) == 1 else matrix_format
        if changed and name.removesuffix(".weight") in pairs:
            formats[name] = changed
    alignment = base.metadata.get("general.alignment", 32)
    assert isinstance(alignment, int)  # the reader has seen to it
    with path.open("wb") as file:
        file.write(_header(base, formats, None if to == KEEP else TYPES[to], alignment))
        for name, tensor in base.tensors.items():
            for data in _data(tensor, pairs.get(name.removesuffix(".weight")), formats[name]):
                file.write(data)
            file.write(bytes(-file.tell() % alignment))


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
    """Name, sizes, format and offset of every tensor; the reader has seen that they follow one another without gaps."""
    infos, offset = b"", 0
    for name, tensor in base.tensors.items():
        format, text, n_dims = _FORMATS[formats[name]], name.encode(), len(tensor.shape)
        infos += struct.pack("<Q", len(text)) + text
        infos += struct.pack(f"<I{n_dims}QIQ", n_dims, *reversed(tensor.shape), format.id, offset)
        end = offset + prod(tensor.shape) // format.block * format.size
        offset = -(-end // alignment) * alignment
    return infos


def _with_file_type(keys: bytes, file_type: int) -> bytes:
    """general.file_type is what tools show; a file without it has none afterwards either."""
    name = b"general.file_type"
    before, key, after = keys.partition(struct.pack("<Q", len(name)) + name + struct.pack("<I", 4))
    return before + key + struct.pack("<I", file_type) + after[4:] if key else keys


# ---- the weights -----------------------------------------------------------------------------------------------------


def _data(tensor: Tensor, pair: Pair | None, format: str) -> Iterator[memoryview]:
    """The tensor's bytes in `format`, with the pair's update, a slice of rows at a time."""
    if pair is None and format == tensor.format:
        yield tensor.data.data
        return
    rows, width = prod(tensor.shape[:-1]), tensor.shape[-1]
    stored = tensor.data.reshape(rows, -1)
    step = max(1, _SLICE // width)
    for begin in range(0, rows, step):
        part = stored[begin : begin + step]
        weights = replace(tensor, shape=(len(part), width), data=part.reshape(-1)).f32()
        if pair is not None:
            weights = weights + np.float32(pair.scale) * (pair.b[begin : begin + step] @ pair.a)
        yield _encoded(tensor.name, weights, format)


def _encoded(name: str, weights: NDArray[np.float32], format: str) -> memoryview:
    """weights [rows, K] as the format's bytes, by llama.cpp, which makes all of them."""
    limit = np.finfo(np.float16 if format == "F16" else np.float32).max
    if not np.abs(weights).max() <= limit:  # not so for NaN either
        raise NumericsError(f"{name} holds merged weights over {limit:g}, the most in {format}", "merge to F32")
    kind, (rows, width) = _FORMATS[format], weights.shape
    out = np.zeros(weights.size // kind.block * kind.size, np.uint8)
    weights = np.ascontiguousarray(weights)
    convert = llamacpp.load().llama_cpp._lib.ggml_quantize_chunk
    convert.restype = ctypes.c_size_t
    convert.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    convert(kind.id, weights.ctypes.data, out.ctypes.data, 0, rows, width, None)
    return out.data
