"""Options of an index, and of a daemon that answers from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...manifest import PartOptions
from ...options import option


@dataclass(frozen=True)
class IndexOptions:
    """See the help of each."""

    chunk_tokens: int = option(256, "Tokens of a chunk at most.", low=32, high=8192, common=True)
    overlap: float = option(0.15, "Share of a chunk that the next one repeats.", low=0, high=0.5, share=True)


@dataclass(frozen=True)
class DocumentsOptions(PartOptions):
    """Options of a daemon that answers from documents."""

    needs_text: ClassVar = ("index",)

    index: str = option("", "Index of documents (edgetune documents index), whose passages are put before questions of "
                        "chats.",
                        common=True, group="What it answers with")
    passages: int = option(3, "Passages of a question at most.", low=1, high=50)
