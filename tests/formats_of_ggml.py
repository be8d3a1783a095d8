"""Weights in the formats of llama.cpp's library and back, by the library."""

import contextlib
import ctypes
from collections.abc import Callable

import gguf
import numpy as np


def quantize(weights: np.ndarray, format: str) -> np.ndarray:
    """weights float32 [N, K] or [K] -> the format's bytes, by llama.cpp."""
    id, block, block_bytes = ggml_type(format)
    columns = weights.shape[-1]
    if columns % block:
        raise ValueError(f"{columns} columns are not a multiple of {format}'s block of {block}")
    source = np.ascontiguousarray(weights, dtype=np.float32)
    out = np.zeros((*weights.shape[:-1], columns // block * block_bytes), dtype=np.uint8)
    convert = ggml("ggml_quantize_chunk", ctypes.c_size_t, "ippqqqp")  # first weight, rows, columns, importances
    if convert(id, source.ctypes.data, out.ctypes.data, 0, weights.size // columns, columns, None) != out.nbytes:
        raise ValueError(f"llama.cpp could not make {format} of {weights.shape}")
    return out


def dequantize(data: np.ndarray, format: str) -> np.ndarray:
    """The float32 [N, K] that `quantize`'s result stands for: by the gguf package, or llama.cpp where it cannot."""
    if hasattr(gguf.GGMLQuantizationType, format):
        with np.errstate(all="ignore"), contextlib.suppress(NotImplementedError):  # a format that it only names
            return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[format])
    _, block, block_bytes = ggml_type(format)
    source = np.ascontiguousarray(data)
    out = np.empty((*data.shape[:-1], data.shape[-1] // block_bytes * block), np.float32)
    ggml(f"dequantize_row_{format.lower()}", None, "ppq")(source.ctypes.data, out.ctypes.data, out.size)
    return out


def ggml_type(format: str) -> tuple[int, int, int]:
    """GGUF's number for a format, weights a block and bytes a block, as llama.cpp has them; the gguf package lags."""
    name = ggml("ggml_type_name", ctypes.c_char_p, "i")
    id = next(i for i in range(43) if (name(i) or b"").decode().upper() == format)
    return id, ggml("ggml_blck_size", ctypes.c_int64, "i")(id), ggml("ggml_type_size", ctypes.c_size_t, "i")(id)


def ggml(name: str, result: type | None, arguments: str) -> Callable[..., object]:
    """A function of llama.cpp's library; arguments: i int, p pointer, q int64."""
    from llama_cpp import llama_cpp

    function = llama_cpp._lib[name]  # a new object each time: its types are nobody else's
    function.restype = result
    function.argtypes = [{"i": ctypes.c_int, "p": ctypes.c_void_p, "q": ctypes.c_int64}[letter] for letter in arguments]
    return function
