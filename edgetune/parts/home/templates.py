"""Sentences drawn at random from Home Assistant's own templates, in hassil's form, for the entities of a house.

hassil lists the sentences of a template in its order, so that the first thousands are nearly alike. Here each choice
of a template is made at random. A draw gives the sentence and the values of its slots, so that none must be recognized.
An entity is called by its name, a part of it that no other entity has, an alias, or a misspelled name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hassil.expression import Alternative, Expression, Group, ListReference, Permutation, RuleReference, TextChunk
from hassil.intents import IntentData, RangeSlotList, TextSlotList
from hassil.util import normalize_whitespace

from .entities import Entity, Home
from .language import HouseLanguage, spelled
from .tools import AREA, FLOOR, NAME

WAYS = {"whole": 0.6, "part": 0.25, "misspelled": 0.15}
LEAST_LETTERS = 4  # of a word that is misspelled, or stands for the whole name
READ_ONLY = {"sensor", "binary_sensor", "weather", "event", "image", "camera"}


class Namer:
    """Names of a house's entities, each way in its share."""

    def __init__(self, home: Home) -> None:
        self.parts = {entity: unique_parts(entity, home.entities) for entity in home.entities}

    def __call__(self, entity: Entity, rng: random.Random) -> str:
        kind = rng.choices(list(WAYS), list(WAYS.values()))[0]
        name = rng.choice(entity.names)
        if kind == "part" and self.parts[entity]:
            name = rng.choice(self.parts[entity])
        return misspelled(name, rng) if kind == "misspelled" else cased(name, rng)


def unique_parts(entity: Entity, others: Sequence[Entity]) -> list[str]:
    """Runs of words of the name that no other entity's name has, which can be switched if this one can."""
    rivals = [one for one in others if one is not entity and (one.domain in READ_ONLY) <= (entity.domain in READ_ONLY)]
    taken = {part for one in rivals for name in one.names for part in runs(name)}
    area = entity.area.lower()
    return [part for part in runs(entity.name) if part not in taken and part != entity.name.lower() and part not in area
            and len(part) >= LEAST_LETTERS]


def runs(name: str) -> list[str]:
    """All runs of words of a name, in small letters."""
    words = name.lower().split()
    return [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]


def cased(name: str, rng: random.Random) -> str:
    """The name as it is, in small letters, or without its marks, as from a microphone."""
    return rng.choice((name, name.lower(), re.sub(r"[^\w\s]", "", name.lower())))


def misspelled(name: str, rng: random.Random) -> str:
    """The name with a mistake of typing, with two words as one, or in the plural."""
    words = name.lower().split()
    long = [i for i, word in enumerate(words) if len(word) >= LEAST_LETTERS]
    if len(words) > 1 and rng.random() < 0.25:
        i = rng.randrange(len(words) - 1)
        return " ".join([*words[:i], words[i] + words[i + 1], *words[i + 2:]])
    if not long:
        return name.lower()
    i = rng.choice(long)
    words[i] = typed(words[i], rng)
    return " ".join(words)


def typed(word: str, rng: random.Random) -> str:
    """A word with one letter left out, doubled, or swapped with the next; or in the plural."""
    i = rng.randrange(1, len(word) - 1)
    return rng.choice((word[:i] + word[i + 1:], word[:i] + word[i] + word[i:], word[:i] + word[i + 1] + word[i]
                       + word[i + 2:], word.removesuffix("s") if word.endswith("s") else word + "s"))


SPELLED = 0.15  # share of numbers that are written as words
WORDED = 0.1  # share of percentages that are written as "half" and the like
PER_CENT = range(0, 101, 5)
DEGREES = range(15, 29)


class NothingFits(Exception):
    """A template asks for an entity, area or value that the house does not have."""


@dataclass
class Draw:
    """A sentence, the intent that it means, and the values of its slots. entity: the one that it names. said: the rules
    of the language that its words come from, such as `all` and `here`.
    """

    text: str
    intent: str
    slots: dict[str, Any] = field(default_factory=dict)
    entity: Entity | None = None
    said: set[str] = field(default_factory=set)


class Templates:
    """The templates of a language. namer: how an entity is called."""

    def __init__(self, language: HouseLanguage, home: Home, namer: Namer) -> None:
        self.intents = language.intents
        self.home = home
        self.wildcards = language.wildcards
        self.amounts = language.amounts
        words = "|".join(sorted(self.amounts, key=len, reverse=True))
        self._after_amounts = re.compile(rf"\b({words})\s*(?:%|{language.texts['percent']})", re.IGNORECASE)
        self.namer = namer

    def draw(self, intent: str, rng: random.Random) -> Draw:
        """A sentence of an intent. Raises NothingFits if the template that was drawn does not fit the house."""
        data = rng.choice(self.intents.intents[intent].data)
        template = rng.choice(data.sentences)
        found = Draw("", intent, dict(data.slots))
        text = normalize_whitespace(_Drawing(self, data, rng, found).text(template.expression)).strip()
        found.text = self._after_amounts.sub(r"\1", text)
        return found


@dataclass
class _Drawing:
    """One sentence on its way."""

    templates: Templates
    data: IntentData
    rng: random.Random
    draw: Draw

    def text(self, part: Expression) -> str:
        if isinstance(part, TextChunk):
            return str(part.original_text)
        if isinstance(part, ListReference):
            return self.value(part)
        if isinstance(part, RuleReference):
            self.draw.said.add(part.rule_name)
            rule = self.data.expansion_rules.get(part.rule_name)
            return self.text((rule or self.templates.intents.expansion_rules[part.rule_name]).expression)
        assert isinstance(part, Group)
        if isinstance(part, Alternative):
            return self.text(self.rng.choice(part.items))
        if isinstance(part, Permutation):
            return " ".join(self.text(item) for item in self.rng.sample(part.items, len(part.items)))
        return "".join(self.text(item) for item in part.items)

    def value(self, part: ListReference) -> str:
        """The words of a slot, whose value is noted."""
        if part.list_name == NAME:
            return self.entity()
        if part.list_name in (AREA, FLOOR):
            return self.place(part.list_name)
        found = self.data.slot_lists.get(part.list_name) or self.templates.intents.slot_lists.get(part.list_name)
        if isinstance(found, TextSlotList):
            chosen = self.rng.choice(found.values)
            self.draw.slots[part.slot_name] = chosen.value_out
            return self.text(chosen.text_in)
        if isinstance(found, RangeSlotList):
            return self.number(part.slot_name, found)
        if not (texts := self.templates.wildcards.get(part.list_name)):
            raise NothingFits(part.list_name)
        chosen_text = self.rng.choice(texts)
        self.draw.slots[part.slot_name] = chosen_text
        return chosen_text

    def entity(self) -> str:
        wanted = self.data.requires_context.get("domain")
        domains = [wanted] if isinstance(wanted, str) else wanted
        area = self.draw.slots.get(AREA)
        fitting = [one for one in self.templates.home.entities
                   if (domains is None or one.domain in domains) and area in (None, one.area)]
        if not fitting:
            raise NothingFits(NAME)
        self.draw.entity = chosen = self.rng.choice(fitting)
        self.draw.slots[NAME] = chosen.name
        return self.templates.namer(chosen, self.rng)

    def place(self, kind: str) -> str:
        home = self.templates.home
        entity = self.draw.entity
        if kind == FLOOR:
            names: dict[str, tuple[str, ...]] = {
                floor: (floor,) for floor in home.floors if not entity or entity.floor == floor}
        else:
            names = {area.name: (area.name, *area.aliases) for area in home.areas
                     if not entity or entity.area == area.name}
        if not names:
            raise NothingFits(kind)
        self.draw.slots[kind] = name = self.rng.choice(sorted(names))
        return self.rng.choice(names[name])

    def number(self, slot: str, numbers: RangeSlotList) -> str:
        percentage = numbers.type.value == "percentage"
        if percentage and self.rng.random() < WORDED:
            word = self.rng.choice(sorted(self.templates.amounts))
            self.draw.slots[slot] = int(self.templates.amounts[word] * (numbers.multiplier or 1))
            return word
        likely: Sequence[int] = {"percentage": PER_CENT, "temperature": DEGREES}.get(numbers.type.value, ())
        chosen = self.rng.choice([one for one in likely if numbers.start <= one <= numbers.stop]
                                 or range(numbers.start, numbers.stop + 1, numbers.step))
        self.draw.slots[slot] = int(chosen * (numbers.multiplier or 1))
        return spelled(chosen, self.templates.intents.language) if self.rng.random() < SPELLED else str(chosen)
