"""What a sentence asks of a house, by whoever understands it: a person's own sentences, an encoder, a model that writes
text, each where those before it are not sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .entities import Home
from .tools import TOOLS, Call, Target
from .wishes import MISSING, UNFINISHED, WHICH, Wish

SURE = 0.9  # share of right sure answers to sentences as they are drawn; of few, the highest share that is reached


@dataclass(frozen=True)
class Understood:
    """What a sentence asks for. wishes: of its parts. is_sure: whether each part is sure and like the learned ones."""

    wishes: tuple[Wish, ...]
    is_sure: bool

    @property
    def calls(self) -> list[Call]:
        return calls_of(self.wishes)

    @property
    def sure_calls(self) -> list[Call]:
        """The calls, none where a part is not sure: another model, or the person, is asked then."""
        return self.calls if self.is_sure else []

    @property
    def why(self) -> str:
        """Why a part has no call; "" if each has one."""
        return next((wish.why for wish in self.wishes if not wish.tool), "")


class Understanding(Protocol):
    """What understands the sentences of a house, for one thread at a time. busy_bytes: that answers take."""

    @property
    def busy_bytes(self) -> int: ...

    def understand(self, sentence: str) -> Understood:
        """Returns the wishes of a sentence. Raises UsageError for an empty one."""
        ...


class InTurn:
    """The answer of the first one that is sure, else that of the last one. parts: at least one."""

    def __init__(self, parts: Sequence[Understanding]) -> None:
        self._parts = parts

    @property
    def busy_bytes(self) -> int:
        return sum(part.busy_bytes for part in self._parts)

    def understand(self, sentence: str) -> Understood:
        for part in self._parts:
            found = part.understand(sentence)
            if found.is_sure:
                break
        return found


def calls_of(wishes: Sequence[Wish]) -> list[Call]:
    return [wish.call() for wish in wishes if wish.tool]


def possible(wish: Wish, home: Home) -> Wish:
    """The wish, or why it cannot be: what it names does not fit together, means no entity, or lacks a value."""
    if not wish.tool:
        return wish
    tool = TOOLS[wish.tool]
    meant = wish.target.entities(home, tool)
    if tool.target and not meant:
        return Wish(why=MISSING)
    if tool.target and len(meant) > 1 and wish.target == Target():
        return Wish(why=WHICH)
    return wish if tool.is_complete(wish.values) else Wish(why=UNFINISHED)
