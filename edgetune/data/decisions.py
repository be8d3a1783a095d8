"""Typed questions about a state, and rows with answers to them, as decision models take them.

    {"state": "The cellar is wet.",
     "questions": {"team": {"type": "choice", "instructions": "Who repairs it?", "criteria": {"plumber": null,
                                                                                             "roofer": "leaks above"}},
                   "urgent": {"type": "noul", "instructions": "Must it be today?"},
                   "damage": {"type": "score", "instructions": "How bad is it?", "criteria": ["none", "some", "much"]}},
     "expected": {"team": "plumber", "urgent": true, "damage": 1}}

`gold` in place of `expected` has probabilities: {"team": {"plumber": 0.9, "roofer": 0.1}, "urgent": 0.8, "damage":
[0, 0.7, 0.3]}. A row answers some of its questions, or all.

A question is known by its key: its type, its instructions and the levels of a score, as JSON. The options of a choice
do not count, since a later request may offer some of them. In a conversation the key is the system message, the state
is the user's, and the label is the answer. So what learns from conversations learns decisions as well. A row of several
questions is a conversation without a system message, whose answer is an object of labels by their keys; it keeps its
questions, as a model that writes text reads the options too (letters.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError

CHOICE, SCORE, NOUL = TYPES = ("choice", "score", "noul")
NO, YES = "false", "true"  # the labels of noul
MOST_QUESTIONS = 64
OPTIONS = {CHOICE: (2, 255), SCORE: (2, 10), NOUL: (2, 2)}  # the least and the most
LONGEST = 2000  # characters of instructions, or of an option
LONGEST_NAME = 100  # characters of a question's name: headers of an answer have 64 of them
STATE, QUESTIONS, EXPECTED, GOLD = "state", "questions", "expected", "gold"
TEACHER = "teacher"  # in a row: the model that labelled it, where no person did
Labels = dict[str, "str | dict[str, float]"]
"""{key of a question: the right label, or the probability of each label}"""


@dataclass(frozen=True)
class TypedQuestion:
    """A question. labels: the options that are offered, as `labels` are written: the keys of a choice, the numbers of a
    score's levels, YES and NO. texts: what each option means, "" where the label says it.
    """

    type: str
    instructions: str
    labels: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def key(self) -> str:
        return key_of(self.type, self.instructions, self.texts if self.type == SCORE else ())


def key_of(type: str, instructions: str, levels: Sequence[str] = ()) -> str:
    """The key of a question: equal for equal questions, whatever the space between their words."""
    found = {"type": type, "instructions": words(instructions)}
    return _json({**found, "levels": [words(level) for level in levels]} if levels else found)


def words(text: str) -> str:
    """Returns a text with one space between its words, by which questions and options are compared."""
    return " ".join(text.split())


def read_key(text: str) -> TypedQuestion | None:
    """The question of a key, without the options of a choice; None for a text that is no key."""
    if not text.startswith('{"'):
        return None
    try:
        found = json.loads(text)
        levels = tuple(found.get("levels", ()))
        labels = {CHOICE: (), SCORE: tuple(map(str, range(len(levels)))), NOUL: (NO, YES)}[found["type"]]
        question = TypedQuestion(found["type"], found["instructions"], labels, levels or ("",) * len(labels))
        return question if question.key == text else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def typed_in(messages: Sequence[Mapping[str, Any]]) -> str:
    """The key of the typed question that a system message is; "" without one."""
    first = messages[0] if messages else None
    content = first.get("content") if isinstance(first, Mapping) and first.get("role") == "system" else None
    return content if isinstance(content, str) and read_key(content) else ""


def prompt_of(key: str, state: str) -> str:
    """What is read of a question and a state, as text; of no question ("") the state alone."""
    return f"{key}\n\n{state}" if key else state


def split(prompt: str) -> tuple[str, str]:
    """The inverse of `prompt_of`."""
    key, _, state = prompt.partition("\n\n")
    return (key, state) if read_key(key) else ("", prompt)


def with_shared(rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yields rows of files, (line, row). A row that has only questions is left out, and rows after it that name no
    questions have these. So questions can have a separate file, which is read first.
    """
    shared = None
    for line, row in rows:
        if only_asks(row):
            shared = row[QUESTIONS]
        elif shared is not None and isinstance(row, Mapping) and STATE in row and QUESTIONS not in row:
            yield line, {**row, QUESTIONS: shared}
        else:
            yield line, row


def state_text(state: Any) -> str:
    """A state as the text that is read: text as it is, messages a line each, other JSON as its text. JSON that is
    given as text is the same state. Raises DataError for an empty one.
    """
    if isinstance(state, Mapping) and _are_messages(state.get("messages")) and len(state) == 1:
        state = state["messages"]
    if _are_messages(state):
        text = _said(state)
    elif isinstance(state, str):
        text = _normal(state.strip())
    elif isinstance(state, Mapping | list | tuple):
        text = _json(state) if state else ""
    else:
        raise DataError("the state is no text, object or list", "send the text that the questions are about")
    if not text.strip():
        raise DataError("the state is empty", "send what the questions are about")
    return text


def read_question(name: str, given: Any) -> TypedQuestion:
    """A question of a row or a request: {type, instructions, criteria}. Without instructions its name is the question.
    Raises DataError, which names the field.
    """
    if len(name) > LONGEST_NAME:
        raise DataError(f"the name {name!r:.40} of a question has {len(name)} characters, at most {LONGEST_NAME} are "
                        "read", "shorten it; instructions can be longer")
    where = f"{QUESTIONS}.{name}"
    if not isinstance(given, Mapping):
        raise DataError(f"{where} is no object", 'write {"type": "choice", "instructions": "...", "criteria": {...}}')
    if (type := given.get("type")) not in TYPES:
        raise DataError(f"{where}.type is {type!r:.40}", f"choose from {', '.join(TYPES)}")
    asked = _instructions(f"{where}.instructions", given.get("instructions"), name)
    labels, texts = _options(where, type, given.get("criteria"))
    return question_of(where, type, asked, labels, texts)


def asked_in(instructions: str) -> str:
    """The question of instructions that are JSON with the question's name, {"field": ..., "question": ...}, as
    pydantic-ai writes them; others as they are.
    """
    try:
        found = json.loads(instructions) if instructions.startswith("{") else None
    except (ValueError, RecursionError):
        return instructions
    is_named = isinstance(found, dict) and {*found} == {"field", "question"} and isinstance(found["question"], str)
    return found["question"] if found and is_named else instructions


def question_of(where: str, type: str, instructions: str, labels: Sequence[str],
                texts: Sequence[str]) -> TypedQuestion:
    """A question with its options. Raises DataError for options that are too few, too many, equal, empty or too long.
    where: names them.
    """
    least, most = OPTIONS[type]
    if not least <= len(labels) <= most:
        raise DataError(f"{where} has {len(labels)} options", f"give {least} to {most}")
    for text in (*labels, *texts):
        if len(text) > LONGEST:
            raise DataError(f"{where} has an option of {len(text)} characters, at most {LONGEST} are read",
                            "shorten it")
    known = tuple(words(label) for label in labels)
    if not all(known) or (type == SCORE and not all(words(text) for text in texts)):
        raise DataError(f"{where} has an empty option", "write a text")
    if len({*known}) < len(known):
        raise DataError(f"{where} has the same option twice", "give each option once")
    return TypedQuestion(type, instructions, known, tuple(texts))


def is_decision(row: Any) -> bool:
    """Whether a row has a state and answers to typed questions."""
    return isinstance(row, Mapping) and STATE in row and (EXPECTED in row or GOLD in row)


def only_asks(row: Any) -> bool:
    """Whether a row has only questions, for those after it."""
    return isinstance(row, Mapping) and {*row} == {QUESTIONS}


def conversation(row: Mapping[str, Any]) -> dict[str, Any]:
    """The conversation of a row. Raises DataError, which names the field."""
    if QUESTIONS not in row:
        raise DataError("the row has no questions", 'add them, or begin the file with a line {"questions": {...}}')
    questions = read_questions(row[QUESTIONS])
    field = EXPECTED if row.get(EXPECTED) is not None else GOLD
    if not isinstance(answers := row.get(field), Mapping) or not answers:
        raise DataError(f"{field} is no object with answers", 'write {"expected": {"team": "plumber"}}')
    labels: Labels = {}
    for name, answer in answers.items():
        if name not in questions:
            raise DataError(f"{field} answers {name!r:.80}, which is none of the questions",
                            f"use a name of the questions: {', '.join(questions):.200}")
        if answer is not None:
            labels[questions[name].key] = read_answer(f"{field}.{name}", questions[name], answer)
    if not labels:
        raise DataError("the row answers no question", "give an answer, or remove the row")
    return {"messages": [{"role": "user", "content": state_text(row[STATE])},
                         {"role": "assistant", "content": _json(labels)}],
            QUESTIONS: row[QUESTIONS]}


def read_questions(given: Any) -> dict[str, TypedQuestion]:
    """Questions by their names. Raises DataError."""
    if not isinstance(given, Mapping) or not 1 <= len(given) <= MOST_QUESTIONS:
        raise DataError(f"{QUESTIONS} is no object of 1 to {MOST_QUESTIONS} questions",
                        'write {"team": {"type": "choice", ...}}')
    return {name: read_question(name, question) for name, question in given.items()}


def read_answer(where: str, question: TypedQuestion, answer: Any) -> str | dict[str, float]:
    """The label of an answer, or the probabilities of labels. Raises DataError for one that is no option."""
    if question.type == SCORE and isinstance(answer, list):
        answer = dict(zip(map(str, range(len(answer))), answer, strict=True))
    if question.type == NOUL and isinstance(answer, float | int) and not isinstance(answer, bool):
        answer = {YES: answer, NO: 1 - answer}
    if isinstance(answer, Mapping):
        return _distribution(where, question, answer)
    label = words(label_of(answer))
    if label not in question.labels:
        raise DataError(f"{where} is {answer!r:.80}, which is no option", f"choose from {_named(question)}")
    return label


def label_of(answer: Any) -> str:
    """Returns the label of an answer as text: true as "true", 2 as "2"."""
    return answer if isinstance(answer, str) else _json(answer)


def check_answer(key: str, answer: str) -> None:
    """Raises DataError for an answer to a yes/no question, or to a score, that is none of its labels. key: of the
    question; the options of a choice are not known by it.
    """
    question = read_key(key)
    if question and question.labels and answer.strip() not in question.labels:
        raise DataError(f"the answer to {question.instructions!r:.80} is {answer!r:.80}, which is no option",
                        f"choose from {_named(question)}")


def labels_in(answer: str) -> Labels | None:
    """The labels of an answer to several questions, by their keys; None for another answer."""
    if not answer.startswith('{"'):
        return None
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(found, dict) and found and all(read_key(key) for key in found)
    return found if is_one and all(map(_is_label, found.values())) else None


def likeliest(label: str | Mapping[str, float]) -> str:
    """The label that is meant, or the most probable one."""
    return label if isinstance(label, str) else max(label, key=lambda name: label[name])


def readable(answer: str) -> str:
    """An answer for people: of one to several questions their instructions with labels, of a score the level's text."""
    labels = labels_in(answer)
    if not labels:
        return answer
    found = {}
    for key, label in labels.items():
        question = read_key(key)
        assert question
        texts = dict(zip(question.labels, question.texts, strict=True)) if question.type == SCORE else {}
        name = question.instructions if question.instructions not in found else key
        found[name] = texts.get(likeliest(label), likeliest(label))
    return _json(found)


def written(labels: Mapping[str, Any]) -> str:
    """The answer to several questions, as conversations have it."""
    return _json(labels)


def _instructions(where: str, given: Any, name: str) -> str:
    """The question of instructions: text, or JSON as its text; without any it is the name."""
    if given is None or given == "":
        return _checked(where, name)
    if not given or not isinstance(given, str | Mapping | list):
        raise DataError(f"{where} is {given!r:.40}, which is no text", "write the question")
    return _checked(where, asked_in(_text(where, given)))


def _options(where: str, type: str, criteria: Any) -> tuple[list[str], list[str]]:
    """The labels and texts of a question's criteria."""
    if type == NOUL:
        if criteria is not None and not (isinstance(criteria, Mapping) and {*criteria} <= {NO, YES}):
            raise DataError(f"{where}.criteria has other keys than {YES} and {NO}", "leave it out")
        return [NO, YES], [_text(f"{where}.criteria.{label}", (criteria or {}).get(label)) for label in (NO, YES)]
    if type == SCORE:
        if not isinstance(criteria, list | tuple):
            raise DataError(f"{where}.criteria is no list of levels", 'write ["none", "some", "much"]')
        levels = [words(_text(f"{where}.criteria[{i}]", text)) for i, text in enumerate(criteria)]
        return [str(number) for number in range(len(levels))], levels
    if not isinstance(criteria, Mapping):
        raise DataError(f"{where}.criteria is no object of options", 'write {"plumber": null, "roofer": "leaks above"}')
    return [*criteria], [_text(f"{where}.criteria.{label}", text) for label, text in criteria.items()]


def _checked(where: str, text: str) -> str:
    text = words(text)
    if not text:
        raise DataError(f"{where} is empty", "write a text")
    if len(text) > LONGEST:
        raise DataError(f"{where} has {len(text)} characters, at most {LONGEST} are read", "shorten it")
    return text


def _text(where: str, value: Any) -> str:
    """What an option means, as text; JSON as its text."""
    try:
        return "" if value is None else value if isinstance(value, str) else _json(value)
    except (TypeError, ValueError, RecursionError):
        raise DataError(f"{where} is no JSON", "write a text") from None


def _distribution(where: str, question: TypedQuestion, given: Mapping[Any, Any]) -> str | dict[str, float]:
    """Probabilities by labels, each above 0; a label that has all of it by itself."""
    found = {}
    for name, share in given.items():
        label = words(label_of(name))
        if label not in question.labels:
            raise DataError(f"{where} names {label!r:.80}, which is no option", f"choose from {_named(question)}")
        if isinstance(share, bool) or not isinstance(share, float | int) or not 0 <= share <= 1:
            raise DataError(f"{where}.{label} is {share!r:.40}, which is no probability", "give numbers from 0 to 1")
        if share:
            found[label] = float(share)
    if abs(sum(found.values()) - 1) > 0.01:
        raise DataError(f"the probabilities of {where} have the sum {sum(found.values()):.3g}", "let it be 1")
    return next(iter(found)) if len(found) == 1 else found


def _named(question: TypedQuestion) -> str:
    return f"{', '.join(question.labels):.200}"


def _is_label(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and bool(value) and all(
        isinstance(share, float | int) for share in value.values()))


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(each, Mapping) and {"role", "content"} <= {*each} for each in value)


def text_of_parts(where: str, content: Any) -> str:
    """Content as text: text, or parts of text or JSON, as messages have them. Raises DataError for another part."""
    if isinstance(content, str):
        return content
    found = []
    for part in content if isinstance(content, list) else [None]:
        said = part if isinstance(part, Mapping) else {}
        text = next((said[name] for name in ("text", "refusal") if isinstance(said.get(name), str)), None)
        if text is None and isinstance(said.get("data"), Mapping | list):
            text = _json(said["data"])
        if text is None:
            raise DataError(f"{where} is not text alone", "send text: nothing else is read")
        found.append(text)
    return "".join(found)


def _said(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as text: of one user's message its content, of others a line each with who said it. Of calls of tools
    their JSON is read.
    """
    found = []
    for number, message in enumerate(messages):
        calls = message.get("tool_calls")
        content = message["content"] or (_json(calls) if calls else "")
        found.append((str(message["role"]), text_of_parts(f"messages[{number}] of the state", content)))
    if len(found) == 1 and found[0][0] == "user":
        return found[0][1].strip()
    return "\n".join(f"{role}: {text}" for role, text in found)


def _normal(text: str) -> str:
    """A text; of one that is a JSON object or list, the text that this has as a state."""
    if not text.startswith(("{", "[")):
        return text
    try:
        found = json.loads(text)
        said = state_text(found) if found else text
        said.encode()  # halves of surrogate pairs are no text
    except (ValueError, RecursionError):
        return text
    return said


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
