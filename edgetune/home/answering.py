"""An encoder that turns a sentence into calls of a house's tools."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..formats.bundle import open_bundle
from ..serving.encoder import Encoder
from ..serving.learned import encoder_of
from .entities import Home
from .fields import wish_of_fields
from .house import House
from .language import Language, language_of
from .tools import TOOLS, Call, Target
from .wishes import MISSING, UNFINISHED, WHICH, Wish

SURE = 0.97  # share of the answers at this probability that are right, so that no decoder is asked


@dataclass(frozen=True)
class Understood:
    """What a sentence asks for. wishes: of its parts. is_sure: whether each part is sure and like the learned ones."""

    wishes: tuple[Wish, ...]
    is_sure: bool

    @property
    def calls(self) -> list[Call]:
        return [wish.call() for wish in self.wishes if wish.tool]

    @property
    def sure_calls(self) -> list[Call]:
        """The calls, none where a part is not sure: another model, or the person, is asked then."""
        return self.calls if self.is_sure else []

    @property
    def why(self) -> str:
        """Why a part has no call; "" if each has one."""
        return next((wish.why for wish in self.wishes if not wish.tool), "")


class Understanding:
    """The encoder with the adapter of a house. For one thread at a time. Raises the errors of Encoder."""

    def __init__(self, encoder: Path, adapter: Path, home: Home, language: Language, threads: int = 0,
                 share: float = SURE) -> None:
        self._encoder = Encoder(open_bundle(encoder).gguf, threads)
        self._reader = self._encoder.adapter(adapter)
        self._home = home
        self._language = language
        names = [name.lower() for entity in home.entities for name in entity.names]
        self._joined = [name for name in names if len(language.parts(name)) > 1]  # they must not be cut
        kinds = self._reader.known.kinds or self._reader.known.sureness
        self._threshold = kinds.threshold(share) if kinds else 0.0

    @property
    def busy_bytes(self) -> int:
        return self._reader.busy_bytes

    def understand(self, sentence: str) -> Understood:
        """The wishes of a sentence, part by part. Raises UsageError for an empty one."""
        is_name = any(name in sentence.lower() for name in self._joined)
        parts = [sentence] if is_name else self._language.parts(sentence) or [sentence]
        reads = [self._encoder.read(self._language.in_digits(part)) for part in parts]
        found = self._reader.classify(reads)
        wishes = tuple(self._possible(wish_of_fields(json.loads(one.label))) for one in found)
        is_sure = all(one.kind >= self._threshold and self._reader.is_like(read)
                      for one, read in zip(found, reads, strict=True))
        return Understood(wishes, is_sure)

    def _possible(self, wish: Wish) -> Wish:
        """The wish, or why it cannot be: fields that do not fit together mean no entity, or lack a value."""
        if not wish.tool:
            return wish
        tool = TOOLS[wish.tool]
        meant = wish.target.entities(self._home, tool)
        if tool.target and not meant:
            return Wish(why=MISSING)
        if tool.target and len(meant) > 1 and wish.target == Target():
            return Wish(why=WHICH)
        return wish if tool.is_complete(wish.values) else Wish(why=UNFINISHED)


def understanding_of(house: House, threads: int = 0) -> Understanding:
    """The encoder of a house, opened."""
    language = language_of(house.facts.language)
    return Understanding(encoder_of(house.adapter), house.adapter, house.home, language, threads)
