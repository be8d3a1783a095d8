"""llama.cpp's quantizer: a matrix's weights to a format's bytes, a whole file to one of its types.

An importance matrix tells how large each column's input is, as a mean of squares: columns that matter more are kept
more exactly. It is a llama_model_imatrix_data for llama_model_quantize, and plain floats for ggml_quantize_chunk.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgetuneError, UsageError
from ..formats.gguf.read import BY_NAME
from ..machine.device import thread_count
from . import library as llamacpp

# What a whole file is made of: llama.cpp's name -> its number (llama_ftype), those that need no importance matrix.
TYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 12, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K": 15, "Q4_K_S": 14, "Q4_K_M": 15,
    "Q5_K": 17, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
Importance = Mapping[str, NDArray[np.float32]]


def type_named(name: str) -> str:
    if name.upper() not in TYPES:
        raise UsageError(f"the type {name} is unknown", f"choose from {', '.join(TYPES)}")
    return name.upper()


def encode(weights: NDArray[np.float32], format: str, importance: NDArray[np.float32] | None = None,
           threads: int = 1) -> NDArray[np.uint8]:
    """weights [N, K], importance [K] or None -> the format's bytes [N, K / block * size]; K is a multiple of block.

    Each row is made on its own, so threads change nothing but the time.
    """
    kind = BY_NAME[format]
    rows, width = weights.shape
    out = np.zeros((rows, width // kind.block * kind.size), np.uint8)
    weights = np.ascontiguousarray(weights, np.float32)
    important = None if importance is None else np.ascontiguousarray(importance, np.float32)
    convert = llamacpp.load()._lib.ggml_quantize_chunk
    convert.restype = ctypes.c_size_t
    convert.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def work(begin: int, end: int) -> None:
        convert(kind.id, weights[begin:].ctypes.data, out[begin:].ctypes.data, 0, end - begin, width,
                None if important is None else important.ctypes.data)

    edges = [rows * i // threads for i in range(threads + 1)]
    if threads == 1:
        work(0, rows)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, edges[:-1], edges[1:]))
    return out


def quantize_file(source: Path, out: Path, to: str, threads: int = 0, importance: Importance | None = None) -> None:
    """Write the GGUF `source` again, each tensor in the format that llama.cpp chooses for the type `to` (of TYPES)."""
    llama = llamacpp.load()
    settings = llama.llama_model_quantize_default_params()
    settings.ftype = TYPES[to]
    settings.allow_requantize = True
    settings.nthread = thread_count(threads)
    held = {name: np.ascontiguousarray(values, np.float32) for name, values in (importance or {}).items()}
    if held:
        entries = (llama.llama_model_imatrix_data * (len(held) + 1))()  # the last one, without a name, ends it
        for entry, (name, values) in zip(entries, held.items(), strict=False):
            entry.name = name.encode()
            entry.size = values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        settings.imatrix = entries
    llamacpp.complaint()
    if llama.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(settings)):
        raise EdgetuneError(f"llama.cpp cannot write {to} to {out}: {llamacpp.complaint()}",
                            "free some space, or choose another type")
