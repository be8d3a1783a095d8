"""Answers in JSON as an encoder gives them: fields with a few values are classes, other values are cut out of the
question by tags of its tokens.

    "play some 1959 songs" -> {"intent": "PlayMusic", "slots": {"year": "1959"}}

Here `intent` is closed: a class says its value. `year` is copied: the token of "1959" has the tag B of this field, and
further tokens of a value the tag I; all others have the tag O (Ramshaw and Marcus 1995). A field is the path of keys to
a value. A list of copied values has several places in the question.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Path = tuple[str, ...]
Span = tuple[int, int]
OUTSIDE = 0  # the tag of tokens of no value; field i has the tags 1 + 2 i (B) and 2 + 2 i (I)
ABSENT = ""  # as the JSON text of a closed field's value: the field is not in the answer
COPIED = 0.95  # share of a field's values that are words of their questions, from which on it is copied;
HALF = 0.5  # and from which on if it has too many values for classes; its other values are not learned
FEW = 4  # values of a field; of fewer, all may occur once
MOST_VALUES = 200  # of a closed field
AS_IT_IS = "as it is"
LOWER = "lower"


@dataclass(frozen=True)
class Closed:
    """A field with a few values. values: their JSON texts; ABSENT first where some answers lack the field."""

    path: Path
    values: tuple[str, ...]


@dataclass(frozen=True)
class Copied:
    """A field whose values stand in the question. is_list: some answers have several values; numbers: all values are
    numbers. case: AS_IT_IS, or LOWER where values are lower-cased copies.
    """

    path: Path
    is_list: bool = False
    numbers: bool = False
    case: str = AS_IT_IS


@dataclass(frozen=True)
class Form:
    """The form of a data set's answers. objects: the paths of objects that each answer has; order: these and all
    fields, as answers write them.
    """

    closed: tuple[Closed, ...]
    copied: tuple[Copied, ...]
    objects: tuple[Path, ...]
    order: tuple[Path, ...]

    @property
    def sizes(self) -> list[int]:
        """The number of values of each closed field."""
        return [len(field.values) for field in self.closed]

    @property
    def tags(self) -> int:
        return 1 + 2 * len(self.copied)

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Form:
        """The inverse of `to_json`. Raises KeyError or TypeError for what it did not write."""
        return cls(tuple(Closed(tuple(one["path"]), tuple(one["values"])) for one in found["closed"]),
                   tuple(Copied(tuple(one["path"]), one["is_list"], one["numbers"], one["case"])
                         for one in found["copied"]),
                   *(tuple(map(tuple, found[name])) for name in ("objects", "order")))

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    # ---- to labels ----------------------------------------------------------------------------------------------

    def classes(self, answer: Mapping[str, Any]) -> list[int]:
        """The place of each closed field's value among its values. Raises DataError for an unknown field or value."""
        found = dict(leaves(answer))
        for path in found.keys() - {*self.order}:
            raise DataError(f"the field {'.'.join(path)} is in no row to learn", "add rows with it, or remove this one")
        numbers = []
        for field in self.closed:
            value = json.dumps(found[field.path]) if field.path in found else ABSENT
            if value not in field.values:
                raise DataError(f"{'.'.join(field.path)} is {value or 'missing'}, which no row to learn has",
                                "add rows with it, or remove this one")
            numbers.append(field.values.index(value))
        return numbers

    def tagged(self, answer: Mapping[str, Any], question: str, places: Sequence[Span]) -> list[int]:
        """The tag of each token of a question, whose characters are at `places`; (0, 0) of a mark. Of a value that
        stands there several times the first place that is free counts; one that does not stand there has no tag.
        """
        found = dict(leaves(answer))
        wanted = [(str(value), number) for number, field in enumerate(self.copied)
                  for value in _values(found.get(field.path, []))]
        taken: list[tuple[Span, int]] = []
        for value, number in sorted(wanted, key=lambda pair: -len(pair[0])):  # a part of a longer value comes later
            if (span := _free_place(value, question, [span for span, _ in taken])) is not None:
                taken.append((span, number))
        tags = [OUTSIDE] * len(places)
        for (begin, end), number in taken:
            inside = [i for i, (first, last) in enumerate(places) if first < end and last > begin]
            for i in inside:
                tags[i] = 2 + 2 * number
            if inside:
                tags[inside[0]] = 1 + 2 * number
        return tags

    # ---- and back -----------------------------------------------------------------------------------------------

    def answer(self, classes: Sequence[int], tags: Sequence[int], question: str, places: Sequence[Span]) -> str:
        """The answer as JSON text: the inverse of `classes` and `tagged`."""
        values: dict[Path, Any] = {}
        for field, number in zip(self.closed, classes, strict=True):
            if (text := field.values[number]) != ABSENT:
                values[field.path] = json.loads(text)
        for number, texts in _cut(tags, question, places).items():
            copied = self.copied[number]
            made = [_made(text, copied) for text in texts]
            values[copied.path] = made if copied.is_list and len(made) > 1 else made[0]
        answer: dict[str, Any] = {}
        for path in self.order:
            if path in self.objects:
                _inner(answer, path)
            elif path in values:
                _inner(answer, path[:-1])[path[-1]] = values[path]
        return json.dumps(answer, ensure_ascii=False)


def form_of(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Form:
    """The form of answers to questions, (question, answer) each. Raises DataError for a field that is neither closed
    nor copied, with one of its values.
    """
    found: dict[Path, list[tuple[str, Any]]] = {}
    objects: list[set[Path]] = []
    order: dict[Path, None] = {}
    for question, answer in rows:
        for path, value in leaves(answer):
            found.setdefault(path, []).append((question, value))
        objects.append(set(_objects(answer)))
        order |= dict.fromkeys(_paths(answer))
    closed = []
    copied = []
    for path, values in found.items():
        field = _copied(path, values, COPIED) or _closed(path, values, len(rows)) or _copied(path, values, HALF)
        if isinstance(field, Copied):
            copied.append(field)
        elif isinstance(field, Closed):
            closed.append(field)
        else:
            raise DataError(f"the field {'.'.join(path)} has many values, such as {values[0][1]!r:.80}, and they do "
                            "not stand in the questions", "take a model that writes text, such as smollm2")
    common = set.intersection(*objects) if objects else set()
    return Form(tuple(closed), tuple(copied), tuple(sorted(common)),
                tuple(path for path in order if path in found or path in common))


def leaves(answer: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each field and its value: text, a number, true, false, null, or a list of these. Raises DataError for a list of
    anything else.
    """
    for key, value in answer.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
            raise DataError(f"{'.'.join((*path, key))} is a list of objects or lists",
                            "take a model that writes text, such as smollm2")
        else:
            yield (*path, key), value


def _paths(answer: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """The paths of all objects and fields, as they are written."""
    for key, value in answer.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from _paths(value, (*path, key))


def _objects(answer: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    for key, value in answer.items():
        if isinstance(value, dict):
            yield (*path, key)
            yield from _objects(value, (*path, key))


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _copied(path: Path, values: Sequence[tuple[str, Any]], share: float) -> Copied | None:
    """The field, if at least this share of its values are words of their questions: "sat" of "saturday" is none, and
    answers have whole words.
    """
    each = [(question, one) for question, value in values for one in _values(value)]
    if not each or any(isinstance(one, bool) or one is None for _, one in each):
        return None
    stands = [(question, str(one), place) for question, one in each
              if (place := _free_place(str(one), question, [], whole=True)) is not None]
    if len(stands) < share * len(each):
        return None
    is_exact = all(question[begin:end] == one for question, one, (begin, end) in stands)
    is_lower = all(question[begin:end].lower() == one for question, one, (begin, end) in stands)
    return Copied(path, any(isinstance(value, list) for _, value in values),
                  all(isinstance(one, int | float) for _, one in each),
                  LOWER if is_lower and not is_exact else AS_IT_IS)


def _closed(path: Path, values: Sequence[tuple[str, Any]], rows: int) -> Closed | None:
    """The field, if it has few values, most of which occur several times."""
    counts = Counter(json.dumps(value) for _, value in values)
    once = sum(count == 1 for count in counts.values())
    if len(counts) > MOST_VALUES or 2 * once > max(len(values), FEW):
        return None
    return Closed(path, (*([ABSENT] if len(values) < rows else []), *sorted(counts)))


def _free_place(value: str, question: str, taken: Sequence[Span], whole: bool = False) -> Span | None:
    """The first place of a value in a question that overlaps no taken one, whole words before parts of words; with
    `whole` only whole words.
    """
    text = question.lower()
    wanted = value.lower()
    if not wanted or len(text) != len(question) or len(wanted) != len(value):  # lower-casing changed the length
        text, wanted = question, value
    places = []
    begin = text.find(wanted) if wanted else -1
    while begin >= 0:
        end = begin + len(wanted)
        is_part = question[begin - 1:begin].isalnum() or question[end:end + 1].isalnum()
        if not (whole and is_part) and all(end <= first or begin >= last for first, last in taken):
            places.append((is_part, question[begin:end] != value, begin, end))
        begin = text.find(wanted, begin + 1)
    return min(places)[2:] if places else None


def _cut(tags: Sequence[int], question: str, places: Sequence[Span]) -> dict[int, list[str]]:
    """The values of each copied field, by its number, in the order of the question."""
    found: dict[int, list[Span]] = {}
    last = OUTSIDE
    for tag, (begin, end) in zip(tags, places, strict=True):
        if begin == end:
            last = OUTSIDE
            continue
        number = (tag - 1) // 2
        if tag != OUTSIDE and tag % 2 == 0 and last in (tag, tag - 1):
            found[number][-1] = (found[number][-1][0], end)
        elif tag != OUTSIDE:
            found.setdefault(number, []).append((begin, end))
        last = tag
    return {number: [question[begin:end] for begin, end in spans] for number, spans in found.items()}


def _made(text: str, field: Copied) -> Any:
    if field.numbers:
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text.lower() if field.case == LOWER else text


def _inner(answer: dict[str, Any], path: Path) -> dict[str, Any]:
    """The object at a path, made where it is missing."""
    for key in path:
        answer = answer.setdefault(key, {})
    return answer


# ---- the likeliest tags: T tokens, W words, K tags -------------------------------------------------------------------


def best_tags(logp: NDArray[np.float32], question: str, places: Sequence[Span]) -> list[int]:
    """The tags [T] of the likeliest sequence (Viterbi 1967) that makes whole
    values: of whole words, each begun by B. logp [T, K]: of each token's tags.
    """
    words = words_of(question, places)
    k = logp.shape[1]
    if not words:
        return [OUTSIDE] * len(places)
    first_inside = np.arange(k)
    first_inside[1::2] += 1  # the pieces of a word after its first have I where that has B
    scores = np.stack([logp[word[0]] + logp[word[1:]].astype(np.float64)[:, first_inside].sum(0) for word in words])
    path = _viterbi(scores)
    tags = [OUTSIDE] * len(places)
    for word, tag in zip(words, path, strict=True):
        for number, token in enumerate(word):
            tags[token] = int(first_inside[tag]) if number else tag
    return tags


def words_of(question: str, places: Sequence[Span]) -> list[list[int]]:
    """The tokens of each word: those between which no character is left out, all of letters and digits."""
    words: list[list[int]] = []
    last = -1
    for token, (begin, end) in enumerate(places):
        if begin == end:
            continue
        if begin == last and question[begin - 1].isalnum() and question[begin].isalnum():
            words[-1].append(token)
        else:
            words.append([token])
        last = end
    return words


def _viterbi(scores: NDArray[np.float64]) -> list[int]:
    """The tags [W] with the highest sum of scores [W, K], among those in which I follows B or I of its field."""
    k = scores.shape[1]
    may_follow = np.ones((k, k), bool)  # [tag before, tag]
    may_follow[:, 2::2] = False
    for inside in range(2, k, 2):
        may_follow[[inside - 1, inside], inside] = True
    barred = np.where(may_follow, 0.0, -np.inf)
    best = scores[0].copy()
    best[2::2] = -np.inf
    came = []
    for row in scores[1:]:
        reached = best[:, None] + barred
        came.append(reached.argmax(0))
        best = reached.max(0) + row
    path = [int(best.argmax())]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return path[::-1]
