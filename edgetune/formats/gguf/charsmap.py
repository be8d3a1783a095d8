"""The normalisation of a unigram tokenizer in a GGUF, checked: llama.cpp ends the process where it points outside.

It is a double array with the texts that prefixes of a text become (Kanda 2018): a node has its base in bits 10 to 30,
times 256 where bit 9 is set, and a leaf's value is the place of a text. A child is at base XOR byte.
"""

from __future__ import annotations

import numpy as np

from ...errors import FormatError
from .read import Gguf

KEY = "tokenizer.ggml.precompiled_charsmap"


def check_charsmap(gguf: Gguf) -> None:
    """Raises FormatError for one in which a step or a text ends outside of it."""
    if KEY in gguf.metadata and not _is_whole(bytes(np.array(gguf.metadata[KEY], np.int16).astype(np.uint8))):
        raise FormatError(f"{gguf.path}: {KEY} points outside of itself",
                          "the file was converted wrongly or is damaged: download or convert it again")


def _is_whole(data: bytes) -> bool:
    size = int.from_bytes(data[:4], "little")
    texts = data[4 + size:]
    if size % 4 or not size or not texts.endswith(b"\0"):
        return False
    nodes = np.frombuffer(data[4:4 + size], "<u4")
    is_node = nodes < 1 << 31  # the others are values
    reached = (np.arange(nodes.size, dtype=np.uint32) ^ ((nodes >> 10) << ((nodes >> 6) & 8)))[is_node]
    if ((reached | 0xFF) >= nodes.size).any():
        return False
    is_leaf = (nodes[is_node] & 0x100) > 0
    return bool((nodes[reached[is_leaf]] & 0x7FFFFFFF < len(texts)).all())
