"""Options of an index."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import option


@dataclass(frozen=True)
class IndexOptions:
    """See the help of each."""

    chunk_tokens: int = option(256, "Tokens of a chunk at most.", low=32, high=8192, common=True)
    overlap: float = option(0.15, "Share of a chunk that the next one repeats.", low=0, high=0.5, share=True)
