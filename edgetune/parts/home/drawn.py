"""Sentences drawn at random from Home Assistant's own templates, in hassil's form, for the entities of a house.

hassil lists the sentences of a template in its order, so that the first thousands are nearly alike. Here each choice
of a template is made at random. A draw gives the sentence and the values of its slots, so that none must be recognized.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hassil.expression import Alternative, Expression, Group, ListReference, Permutation, RuleReference, TextChunk
from hassil.intents import IntentData, RangeSlotList, TextSlotList
from hassil.util import normalize_whitespace

from .entities import Entity, Home
from .language import Language
from .numerals import spelled
from .tools import AREA, FLOOR, NAME

SPELLED = 0.15  # share of numbers that are written as words
WORDED = 0.1  # share of percentages that are written as "half" and the like
PER_CENT = range(0, 101, 5)
DEGREES = range(15, 29)
Namer = Callable[[Entity, random.Random], str]


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

    def __init__(self, language: Language, home: Home, namer: Namer) -> None:
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
