"""What people call an entity: its name, a part of it that no other entity has, an alias, or a misspelled name."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from .entities import Entity, Home

SHARES = {"whole": 0.6, "part": 0.25, "misspelled": 0.15}
LEAST_LETTERS = 4  # of a word that is misspelled, or stands for the whole name
READ_ONLY = {"sensor", "binary_sensor", "weather", "event", "image", "camera"}


class Namer:
    """Names of a house's entities, each way in its share."""

    def __init__(self, home: Home) -> None:
        self.parts = {entity: unique_parts(entity, home.entities) for entity in home.entities}

    def __call__(self, entity: Entity, rng: random.Random) -> str:
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
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
