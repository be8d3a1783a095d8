"""Variants of a tiny model: other keys, tensors and types, and the keys that llama.cpp knows."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp

from edgetune.formats.gguf import Gguf, write_gguf


def variant(path: Path, base: Gguf, keys: Mapping[str, Any] = {}, tensors: Mapping[str, Any] = {},
            types: Mapping[str, str] = {}) -> Path:
    """A copy of a model with other keys and tensors (None: without it), and the types of these keys."""
    metadata = {key: base.metadata[key] for key in base.metadata if key != "general.architecture"} | dict(keys)
    held = {name: tensor.f32() for name, tensor in base.tensors.items()} | dict(tensors)
    write_gguf(path, base.architecture, {key: value for key, value in metadata.items() if value is not None},
               {name: values for name, values in held.items() if values is not None}, base.types | dict(types))
    return path


@cache
def known_keys(architecture: str) -> list[str]:
    """All keys that llama.cpp's library names."""
    library = next(Path(llama_cpp.__file__).parent.rglob("libllama.so*")).read_bytes()
    names = [f"{architecture}.{m.decode()}" for m in re.findall(rb"%s\.([a-z_0-9.]+)\0", library)]
    names += [m.decode() for m in re.findall(rb"((?:tokenizer|general)\.[a-z_0-9.]+)\0", library)]
    return sorted(set(names))
