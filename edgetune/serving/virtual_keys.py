"""The keys and values that an adapter's embeddings have in every block, computed once by edgetune's own engine, so that
llama.cpp can hold them before each text.
"""

from __future__ import annotations

import numpy as np

from ..adapters.base import Artifact
from ..backends.base import Array
from ..data.packing import Batch, Example, collate
from ..errors import MismatchError
from ..formats.gguf import Gguf
from ..llamacpp.kv_state import KeyValues
from ..models.common import Cached
from ..models.linear import Activations
from .rollouts.forward import open_decoder

ANY = Example(np.zeros(2, np.int32), np.array([0, 1], np.float32))  # of which nothing is used


def virtual_keys(base: Gguf, found: Artifact, threads: int = 0) -> KeyValues:
    """Raises MismatchError for an adapter that does not fit the base, or with values that are not finite."""
    decoder = open_decoder(base, found, threads=threads, max_tokens=ANY.tokens.size, max_length=ANY.tokens.size,
                           backend="cpu")
    count = decoder.virtual_tokens
    keys: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def attend(layer: int, k: Activations, q: Array, key: Array, v: Array, batch: Batch) -> None:
        keys[layer] = key[:count].reshape(count, -1).copy(), v[:count].reshape(count, -1).copy()
        decoder.attend_batch(layer, k, q, key, v, batch)

    decoder.cached = Cached(attend)
    decoder.forward(collate([ANY]).after(count), keep=False)
    if not all(np.isfinite(array).all() for pair in keys.values() for array in pair):
        raise MismatchError(f"an adapter of the family {found.family} has values that are not finite",
                            "take an earlier adapter")
    return keys
