"""Rows from a list of intents and values: each template becomes questions, with values drawn for its slots.

    values:
      room: [kitchen, hall]
      device: {lamp: light, bulb: light}     # the word that is said: the value in the answer
      level: {from: 0, to: 100, step: 10}
    intents:
      on:
        templates: ["turn on the {device} in the {room}", "[please |]{room} {device} on"]
        answer: {device: "{device}", room: "{room}", action: "on"}

`[one|other]` is one of its wordings. An answer that is a mapping becomes JSON. Some templates of each intent are kept
apart: rows of them are held out, so that a test asks in wordings that were not learned.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.around import instructed
from ...data.rows import as_messages
from ...errors import DataError
from ...options import check_options
from .draw import proportional
from .options import TemplateOptions
from .output import Made, Row
from .spec_file import SLOT, Template, filled, read_part, read_spec

MOST_VALUES = 10_000  # of a range
FEW_SENTENCES = 1 << 31  # of a template
LEAST_TEMPLATES = 3  # of an intent of which one is held out
UNKNOWN = "the slots are"


@dataclass(frozen=True)
class _File:
    """The keys of the file."""

    intents: dict[str, Any]
    values: dict[str, Any]
    system: str = ""


@dataclass(frozen=True)
class _Intent:
    """The keys of an intent. weight: in place of the number of its sentences, for its share."""

    templates: list[Any]
    answer: str | dict[str, Any] | list[Any]
    weight: float | None = None


@dataclass(frozen=True)
class SlotValues:
    """What can be said in a slot, and the value of each in an answer."""

    said: tuple[str, ...]
    values: tuple[Any, ...]


class Sentences:
    """All sentences of a template with their answers, numbered; each is made when it is drawn."""

    def __init__(self, template: Template, answer: Any, slots: Mapping[str, SlotValues]) -> None:
        self.template = template
        self.answer = answer
        self.slots = {name: slots[name] for name in template.slots}
        self.sizes = [*map(len, template.choices), *(len(slot.said) for slot in self.slots.values())]
        self.count = math.prod(self.sizes)

    def at(self, number: int) -> tuple[str, str]:
        """The sentence of this number, and its answer."""
        picked = []
        for size in self.sizes:
            number, index = divmod(number, size)
            picked.append(index)
        choices = iter(picked)
        text = self.template.worded(choices)
        indices = dict(zip(self.slots, choices, strict=True))
        said = {name: slot.said[indices[name]] for name, slot in self.slots.items()}
        values = {name: slot.values[indices[name]] for name, slot in self.slots.items()}
        return filled(text, said), answer_text(self.answer, values)


def make_from_templates(path: Path, options: TemplateOptions) -> Made:
    """Rows of a file of intents. Raises DataError, which names the intent or the slot, and UsageError."""
    check_options(options)
    written = read_part(_File, read_spec(path), path.name)
    slots = {name: _slot(name, found) for name, found in written.values.items()}
    intents = {name: read_part(_Intent, found, f"the intent {name}") for name, found in written.intents.items()}
    if not intents:
        raise DataError(f"{path.name} has no intents", "write one or more below `intents:`")
    rng = random.Random(options.seed)
    parts: dict[str, tuple[list[Sentences], list[Sentences]]] = {}
    for name, intent in intents.items():
        parts[name] = _parted([_sentences(name, text, intent, slots) for text in intent.templates],
                              options.held_out if options.test_count else 0.0, rng)
    made = Made()
    weights = {name: intent.weight for name, intent in intents.items() if intent.weight is not None}
    asked: dict[str, str] = {}
    for which, count, rows in ((0, options.count, made.rows), (1, options.test_count, made.held_out)):
        of_intents = {name: both[which] for name, both in parts.items()}
        sizes = {name: sum(each.count for each in found) for name, found in of_intents.items()}
        for name, number in proportional(count, sizes, options.cap, weights).items():
            rows += _drawn(of_intents[name], number, asked, written.system, made, rng)
        rng.shuffle(rows)
    _note_missing(made, parts, options)
    return made


def _drawn(templates: Sequence[Sentences], count: int, asked: dict[str, str], system: str, made: Made,
           rng: random.Random) -> Iterator[Row]:
    """`count` rows, of each template in proportion to its sentences' square root: a wording with few values is not
    lost among those with many. asked: {sentence: its answer} of all rows so far.
    """
    sizes = {str(i): each.count for i, each in enumerate(templates)}
    weights = {name: math.sqrt(size) for name, size in sizes.items()}
    for name, number in proportional(count, sizes, 0, weights).items():
        sentences = templates[int(name)]
        for index in _indices(sentences.count, number, rng):
            made.read += 1
            question, answer = sentences.at(index)
            if question not in asked:
                asked[question] = answer
                yield _row(question, answer, system)
            elif asked[question] == answer:
                made.drop("repeats another template's sentence")
            else:
                made.drop("asks the same as another template, with another answer")


def _indices(count: int, number: int, rng: random.Random) -> list[int]:
    """`number` different ones below `count`, which may be more than a list can have."""
    if count <= FEW_SENTENCES:
        return rng.sample(range(count), number)
    found: dict[int, None] = {}
    while len(found) < number:
        found[rng.randrange(count)] = None
    return list(found)


def _row(question: str, answer: str, system: str) -> Row:
    if not system:
        return {"prompt": question, "completion": answer}
    return {"messages": instructed(as_messages(question, answer), system)}


def _parted(found: list[Sentences], share: float, rng: random.Random) -> tuple[list[Sentences], list[Sentences]]:
    """(templates to learn, templates kept apart): of three templates or more at least one is kept apart."""
    if share == 0 or len(found) < LEAST_TEMPLATES:
        return found, []
    apart = set(rng.sample(range(len(found)), min(max(1, round(share * len(found))), len(found) - 1)))
    return ([each for i, each in enumerate(found) if i not in apart],
            [each for i, each in enumerate(found) if i in apart])


def _sentences(intent: str, text: Any, found: _Intent, slots: Mapping[str, SlotValues]) -> Sentences:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"a template of the intent {intent} is {text!r:.60}",
                        "write a sentence, with {slot} for values")
    template = Template(text.strip())
    for name in template.slots:
        if name not in slots:
            raise DataError(f"a template of the intent {intent} has the slot {{{name}}}, for which there are no values",
                            f"{UNKNOWN} {', '.join(slots) or 'none'}")
    for name in _slots_of(found.answer):
        if name not in template.slots:
            raise DataError(f"the answer of the intent {intent} needs {{{name}}}, which {text!r:.60} does not say",
                            "put the slot into the template, or make another intent of it")
    return Sentences(template, found.answer, slots)


def _slots_of(answer: Any) -> list[str]:
    if isinstance(answer, str):
        return SLOT.findall(answer)
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list) else ()
    return [name for part in parts for name in _slots_of(part)]


def answer_text(answer: Any, values: Mapping[str, Any]) -> str:
    """An answer with its slots filled: text, or JSON of a mapping or list, in which a slot alone keeps its type."""
    if isinstance(answer, str):
        return filled(answer, values)
    return json.dumps(_filled_json(answer, values), ensure_ascii=False, separators=(",", ":"))


def _filled_json(part: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(part, dict):
        return {key: _filled_json(each, values) for key, each in part.items()}
    if isinstance(part, list):
        return [_filled_json(each, values) for each in part]
    if not isinstance(part, str):
        return part
    alone = SLOT.fullmatch(part)
    return values[alone[1]] if alone else filled(part, values)


def _slot(name: str, found: Any) -> SlotValues:
    """The values of a slot: a list, a mapping of words to values, or a range of numbers."""
    if isinstance(found, dict) and "from" in found and "to" in found:
        numbers = _numbers(name, found)
        return SlotValues(tuple(map(str, numbers)), tuple(numbers))
    if isinstance(found, dict) and found:
        return SlotValues(tuple(map(str, found)), tuple(found.values()))
    if isinstance(found, list) and found:
        return SlotValues(tuple(map(str, found)), tuple(found))
    raise DataError(f"the values of {name} are {found!r:.60}",
                    "write a list, words with their values, or from, to and step")


def _numbers(name: str, found: Mapping[str, Any]) -> list[int]:
    step = found.get("step", 1)
    ends = (found["from"], found["to"], step)
    if not all(isinstance(each, int) for each in ends) or found.keys() - {"from", "to", "step"} or step < 1:
        raise DataError(f"the range of {name} is {dict(found)}", "write whole numbers for from, to and step")
    numbers = range(found["from"], found["to"] + 1, step)
    if not 0 < len(numbers) <= MOST_VALUES:
        raise DataError(f"the range of {name} has {len(numbers)} numbers", f"give 1 to {MOST_VALUES}")
    return list(numbers)


def _note_missing(made: Made, parts: Mapping[str, tuple[list[Sentences], list[Sentences]]],
                  options: TemplateOptions) -> None:
    if len(made.rows) < options.count:
        made.notes.append(f"there are {len(made.rows)} different sentences, {options.count} were wanted")
    few = [name for name, (_, apart) in parts.items() if not apart]
    if few and options.held_out and options.test_count:
        made.notes.append(f"no test rows of {', '.join(few)}: an intent needs {LEAST_TEMPLATES} templates for them")
