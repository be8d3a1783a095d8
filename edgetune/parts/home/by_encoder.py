"""An encoder that turns a sentence into calls of a house's tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...formats.bundle import open_bundle
from ...serving.encoder import UNLIMITED, Encoder
from .answering import SURE, Understood, possible
from .entities import Home
from .fields import wish_of_fields
from .language import Language

ARTICLES = 1  # words before a name that leave it a name alone: "the", "my"


class ByEncoder:
    """The encoder with the adapter of a house. For one thread at a time. budget, errors: of Encoder."""

    def __init__(self, encoder: Path, adapter: Path, home: Home, language: Language, threads: int = 0,
                 share: float = SURE, budget: int = UNLIMITED) -> None:
        self._encoder = Encoder(open_bundle(encoder).gguf, threads, budget=budget)
        self._reader = self._encoder.adapter(adapter)
        self._home = home
        self._language = language
        self._names = sorted((name.lower() for entity in home.entities for name in entity.names), key=len, reverse=True)
        self._joined = [name for name in self._names if len(language.parts(name)) > 1]  # they must not be cut
        kinds = self._reader.known.kinds or self._reader.known.sureness
        self._threshold = kinds.threshold_up_to(share) if kinds else 0.0

    @property
    def busy_bytes(self) -> int:
        return self._reader.busy_bytes

    def understand(self, sentence: str) -> Understood:
        """The wishes of a sentence, part by part. Raises UsageError for an empty one."""
        is_name = any(name in sentence.lower() for name in self._joined)
        parts = [sentence] if is_name else whole_parts(self._language.parts(sentence), self._names) or [sentence]
        reads = [self._encoder.read(self._language.in_digits(part)) for part in parts]
        found = self._reader.classify(reads)
        wishes = tuple(possible(wish_of_fields(json.loads(one.label)), self._home) for one in found)
        is_sure = all(one.kind >= self._threshold and self._reader.is_like(read)
                      for one, read in zip(found, reads, strict=True))
        return Understood(wishes, is_sure)


def whole_parts(parts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Parts of a sentence, in which a name alone means what is said of another one: of "the kettle" and "pendant on"
    the first becomes "kettle on". names: in small letters, the longest first.
    """
    named = [next((name for name in names if name in part.lower()), "") for part in parts]
    is_bare = [bool(name) and len(part.split()) <= len(name.split()) + ARTICLES
               and part.lower().endswith(name) for part, name in zip(parts, named, strict=True)]
    models = [(part, name) for part, name, bare in zip(parts, named, is_bare, strict=True) if name and not bare]
    if not models:
        return list(parts)
    said, name = models[0]
    begin = said.lower().index(name)
    return [said[:begin] + new + said[begin + len(name):] if bare else part
            for part, new, bare in zip(parts, named, is_bare, strict=True)]
