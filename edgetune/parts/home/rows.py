"""Rows of a house: sentences with the calls that they ask for, sentences for which no call is right, and a person's own
ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .entities import Area, Entity, Home
from .language import HouseLanguage
from .own import Sentence, own_wishes, read_sentences
from .templates import Draw, Namer, NothingFits, Templates
from .tools import DATE_TIME, GET_ITEMS, INSTEAD, LIVE_CONTEXT, TOOLS, Call, offered
from .wishes import CANNOT, MISSING, OTHER, UNFINISHED, WHICH, Wish, calls_of, wish_of

SHARES = {"command": 0.62, "several": 0.08, "question": 0.08, MISSING: 0.07, WHICH: 0.03, CANNOT: 0.03, OTHER: 0.06,
          UNFINISHED: 0.03}
KINDS = 4  # domains of each device that a house does not have
REASONED = 0.12  # share of wishes that begin with why
TRIES = 200  # draws until one is of the wanted kind
WEIGHTS = {"HassTurnOn": 5, "HassTurnOff": 5, "HassLightSet": 2, LIVE_CONTEXT: 3}  # where another tool has 1
ASKING = {LIVE_CONTEXT, DATE_TIME, GET_ITEMS}


@dataclass(frozen=True)
class HouseRow:
    """wishes: of its parts, one for most. kind: a key of SHARES."""

    sentence: str
    wishes: tuple[Wish, ...]
    kind: str

    @property
    def calls(self) -> list[Call]:
        return calls_of(self.wishes)

    @property
    def why(self) -> str:
        return self.wishes[0].why


class RowDrawer:
    """Draws rows of a house; the same seed gives the same rows. shopping: the house's list of things to buy."""

    def __init__(self, home: Home, language: HouseLanguage, seed: int = 0, shopping: Entity | None = None) -> None:
        self.home = home
        self.shopping = shopping
        self.language = language
        self.rng = random.Random(seed)
        namer = Namer(home)
        self.templates = Templates(language, home, namer)
        other = elsewhere(home, language)
        self.others = Templates(language, other, Namer(other))
        known = {tool.name for tool in offered(home)}
        of_tool: dict[str, list[str]] = {}
        for intent in language.intents.intents:
            of_tool.setdefault(INSTEAD.get(intent, intent), []).append(intent)
        self.commands = {tool: found for tool, found in of_tool.items() if tool in known - ASKING}
        self.questions = {tool: of_tool[tool] for tool in sorted(ASKING & known)}
        self.unknown = {tool: found for tool, found in of_tool.items() if tool not in TOOLS}

    def draw(self, count: int) -> list[HouseRow]:
        """This many rows with different sentences, or fewer where a house has so few."""
        found: dict[str, HouseRow] = {}
        kinds = list(SHARES)
        for _ in range(3 * count):
            if len(found) >= count:
                break
            kind = self.rng.choices(kinds, list(SHARES.values()))[0]
            for row in self.of_kind(kind):
                found.setdefault(row.sentence.lower(), row)
                break
        rows = list(found.values())
        self.rng.shuffle(rows)
        return rows

    def of_kind(self, kind: str) -> Iterator[HouseRow]:
        """Rows of a kind, as long as draws find some."""
        texts = self.language.texts
        if kind == "several":
            yield from self.several()
        elif kind == OTHER:
            text = str(self.rng.choice(texts["small_talk"])) if self.rng.random() < 0.5 else \
                str(self.rng.choice(texts["other_topics"])).replace("{}", self.rng.choice(texts["topics"]))
            yield HouseRow(self.said(text, polite=False), (Wish(why=OTHER),), kind)
        elif kind == UNFINISHED:
            yield from self.unfinished()
        elif kind == MISSING:
            yield from (HouseRow(self.said(draw.text), (Wish(why=MISSING),), kind) for draw in self.foreign())
        else:
            is_polite = kind != "question"
            yield from (HouseRow(self.said(draw.text, is_polite), (wish,), kind) for draw, wish in self.wished(kind))

    def wished(self, kind: str) -> Iterator[tuple[Draw, Wish]]:
        of_tool = {"question": self.questions, CANNOT: self.unknown}.get(kind, self.commands)
        weights = [WEIGHTS.get(tool, 1) for tool in of_tool]
        for _ in range(TRIES if of_tool else 0):
            tool = self.rng.choices(list(of_tool), weights)[0]
            try:
                draw = self.templates.draw(self.rng.choice(of_tool[tool]), self.rng)
            except NothingFits:
                continue
            wish = wish_of(draw, self.home, self.shopping)
            if wish.why == (kind if kind in (WHICH, CANNOT) else ""):
                yield draw, wish

    def several(self) -> Iterator[HouseRow]:
        """Two commands in a sentence."""
        drawn = self.wished("command")
        for (first, one), (second, other) in zip(drawn, drawn, strict=False):
            join = self.rng.choice(self.language.texts["joins"])
            yield HouseRow(self.said(f"{first.text}{join}{second.text}"), (one, other), "several")

    def foreign(self) -> Iterator[Draw]:
        """Commands to devices, and in rooms, that the house lacks."""
        for _ in range(TRIES if self.commands else 0):
            intents = self.commands[self.rng.choice(list(self.commands))]
            try:
                draw = self.others.draw(self.rng.choice(intents), self.rng)
            except NothingFits:
                continue
            if draw.entity or draw.slots.get("area"):
                yield draw

    def unfinished(self) -> Iterator[HouseRow]:
        for draw, _ in self.wished("command"):
            words = draw.text.split()
            if len(words) > 3:
                yield HouseRow(" ".join(words[:self.rng.choice((1, 2))]), (Wish(why=UNFINISHED),), UNFINISHED)

    def said(self, text: str, polite: bool = True) -> str:
        """The sentence as people say or type it."""
        if polite:
            text = self.rng.choice(self.language.texts["polite"]).replace("{}", text)
        if polite and self.rng.random() < REASONED:
            text = f"{self.rng.choice(self.language.texts['reasons'])}, {text}"
        if self.rng.random() < 0.5:
            text = text[:1].upper() + text[1:]
        return text + (self.rng.choice(".!") if self.rng.random() < 0.15 else "")


def elsewhere(home: Home, language: HouseLanguage) -> Home:
    """Devices and rooms that a house does not have, in domains of all kinds."""
    known = " ".join([*(name for one in home.entities for name in one.names), *(area.name for area in home.areas)])
    devices = [name for name in language.texts["elsewhere"]["devices"] if name.lower() not in known.lower()]
    rooms = [name for name in language.texts["elsewhere"]["areas"] if name.lower() not in known.lower()]
    domains = sorted({domain for one in offered(home) for domain in one.domains})
    entities = [Entity(f"{domains[(KINDS * number + kind) % len(domains)]}.{number}", name)
                for number, name in enumerate(devices) for kind in range(KINDS if domains else 0)]
    return Home(tuple(entities), tuple(Area(room) for room in rooms))


OWN = "own"  # the kind of such rows
TIMES = 4  # that each is learned, where a drawn one is learned once


def read_own(path: str | Path, home: Home) -> list[HouseRow]:
    """The rows of a file. Raises the errors of own_wishes."""
    return rows_of(read_sentences(path), home)


def rows_of(sentences: Iterable[Sentence], home: Home) -> list[HouseRow]:
    """The rows of sentences with their calls. Raises the errors of own_wishes."""
    return [HouseRow(sentence, wishes, OWN) for sentence, wishes in own_wishes(sentences, home)]


def with_own(drawn: Sequence[HouseRow], own: Sequence[HouseRow]) -> list[HouseRow]:
    """Drawn rows, without those whose sentences a person has too, and then each of the person's several times. They
    stand at the end, so that none is held out.
    """
    said = {row.sentence.lower() for row in own}
    return [row for row in drawn if row.sentence.lower() not in said] + [*own] * TIMES
