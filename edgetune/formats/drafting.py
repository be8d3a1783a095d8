"""Blocks at a file's end that draft several tokens ahead (multi-token prediction): neither llama.cpp's answers nor
training read them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import FormatError
from .gguf import Gguf

if TYPE_CHECKING:
    from .metadata import MetadataReader

KEY = "nextn_predict_layers"


def drafting_blocks(get: MetadataReader) -> int:
    """The number of the file's last blocks that draft. Raises FormatError where they are all."""
    count = get.integer(KEY, 0)
    if count and count >= get.integer("block_count"):
        raise FormatError(f"{get.gguf.path} has {get.arch}.{KEY} = {count}, and no more blocks",
                          "take the file of the whole model")
    return count


def unread_tensors(gguf: Gguf, n_layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of blocks from n_layer on, if some draft."""
    if not gguf.metadata.get(f"{gguf.architecture}.{KEY}", 0):
        return {}
    found = ((name, re.match(r"blk\.(\d+)\.", name)) for name in gguf.tensors)
    return {name: gguf.tensors[name].shape for name, block in found if block and int(block[1]) >= n_layer}
