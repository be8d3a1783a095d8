"""The contract of a grader, and how one is read from JSON.

A grader gives an answer a reward, mostly from 0 to 1. It is written as JSON, {"type": ..., "name": ..., ...}: OpenAI's
graders with OpenAI's fields, and some of edgetune. To add one, write a file in this folder with a frozen dataclass that
is a Grader (or OneByOne) and decorate it with `register`; its fields are those of its JSON. `regex.py` is the shortest.

What is wrong with the grader itself is a UsageError when it is made, what a row lacks a DataError of `check_item`. What
is wrong with an answer is no exception: its reward is 0, and `Grade.errors` says why, under OpenAI's names.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from ...data.rewards import reward_of
from ...disk import read_small
from ...errors import EdgetuneError, UsageError, install_hint
from ...options import Registry
from .sample import Sample, Ungraded
from .template import GraderTemplate, parse_template

_WORDS = {str: "text", float: "a number", int: "a whole number", bool: "true or false", NoneType: "null",
          Mapping: "an object"}


def fits(value: Any, kind: Any) -> bool:
    """Checks a value against str, int, float, bool, None, Any, Mapping, tuple, Literal, or a union of such."""
    origin = get_origin(kind) or kind
    parts = get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(value is part or (type(value) is type(part) and value == part) for part in parts)
    if origin is tuple:
        kinds = parts[:1] * len(value) if Ellipsis in parts and isinstance(value, list | tuple) else parts
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < sys.float_info.max
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin)


def made_of(kind: Any) -> str:
    """A type in words, as "give ..." has them."""
    origin = get_origin(kind) or kind
    parts = get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(made_of(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        return f"a list of {len(parts)} numbers" if Ellipsis not in parts else f"a list, each {made_of(parts[0])}"
    return _WORDS.get(origin, "a value")


def in_words(value: Any) -> str:
    """A value, mostly of JSON, cut."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list" if len(value) != 1 else "a list of one item"
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        return "null" if value is None else f"{value!r:.60}"
    except Exception:  # a number of many digits, or a foreign type, that cannot be written
        return f"a {type(value).__name__}"


# A pattern can backtrack for longer than anybody waits; Python's re looks for signals while it searches.
MAX_LATE = 3  # answers that may take longer, then it is the grader that is wrong

_seconds = 0.0  # 0: no limit
_late = 0


def set_time_limit(seconds: float) -> None:
    """Sets the time limit of all graders of this process, which must grade on its main thread. 0: none."""
    global _seconds, _late
    _seconds = seconds
    _late = 0
    if seconds:
        signal.signal(signal.SIGALRM, _on_alarm)


def in_time(score: Callable[[], float], name: str) -> float:
    """Returns the result of `score`. Raises Ungraded after the limit, and EdgetuneError if that happens too often."""
    global _late
    if not _seconds or threading.current_thread() is not threading.main_thread():
        return score()
    signal.setitimer(signal.ITIMER_REAL, _seconds)
    try:
        return score()
    except _LateError:
        _late += 1
        if _late >= MAX_LATE:
            raise EdgetuneError(f"the grader {name} took more than {_seconds:g} s on each of {_late} answers",
                                "give it a simpler pattern, or let answers be shorter") from None
        raise Ungraded("unresponsive_reward_error") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class _LateError(Exception):
    pass


def _on_alarm(*_signal: object) -> None:
    raise _LateError


T = TypeVar("T", bound="Grader")
OUTPUT = "{{ sample.output_text }}"
PACKAGES = ("rapidfuzz", "rouge_score", "nltk", "sacrebleu", "jsonschema")  # which an installation may lack
NOT_WRITTEN = {"written": False}  # metadata of a field that is no part of the JSON
REFUSED = {"label_model": ("is for evals alone, which edgetune does not have", "use a score_model")}


@dataclass(frozen=True)
class Grade:
    """The score of an answer. parts: of a multi grader, by the keys of its graders. errors: by OpenAI's names, true or
    a text, only those that are set. applicable: whether it counts at all; a reward function may say that it does not.
    """

    reward: float  # at most MAX_REWARD, with either sign
    parts: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, bool | str] = field(default_factory=dict)
    applicable: bool = True


class ScoreModel(Protocol):
    """A model that scores answers. name: its other name in a score_model grader, apart from "self"."""

    @property
    def name(self) -> str: ...

    def label_probabilities(self, conversations: Sequence[Sequence[Mapping[str, Any]]],
                            labels: Sequence[str]) -> list[list[float] | None]:
        """The probabilities, for each conversation, that the answer begins with each label. They sum to 1 over labels.

        None where a conversation does not fit the model's context.
        """


@dataclass(frozen=True)
class Means:
    """Resources that graders may use in addition to their JSON."""

    model: ScoreModel | None = None
    allow_python: bool = True
    allow_unsafe_python: bool = False


@dataclass(frozen=True, kw_only=True)
class Grader(ABC):
    """One rule. An instance holds the fields of its JSON; it can be used from one thread at a time."""

    type: ClassVar[str]
    name: str = ""  # its type's where it has none

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.type)
        self.check()

    def check(self) -> None:
        """Raises UsageError for fields that do not make a grader."""
        self.templates()

    @abstractmethod
    def grade(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        """A grade for each answer; `items[i]` is the row that sample i answers, with all its columns.

        Raises EdgetuneError for what concerns no answer, such as a sandbox that does not start.
        """

    def check_item(self, item: Mapping[str, Any]) -> None:
        """Raises DataError, which names the variable, for a row that lacks what a template names."""
        for template in self.templates():
            template.check(item)

    def templates(self) -> list[GraderTemplate]:
        """The templates of all fields. Raises UsageError for one that cannot be read."""
        names = [spec.name for spec in fields(self) if spec.metadata.get("template")]
        written = [(name, getattr(self, name)) for name in names]
        return [parse_template(text, f"{name} of the grader {self.name}") for name, text in written if text]

    def rendered(self, text: str, sample: Sample, item: Mapping[str, Any]) -> str:
        """A template of this grader, filled in. Raises Ungraded."""
        return parse_template(text, self.name).render(sample, item)

    def known_before(self, text: str, item: Mapping[str, Any]) -> str | None:
        """A template of this grader, filled in without an answer; None where it names something of the answer."""
        parsed = parse_template(text, self.name)
        return None if any(parsed.variables("sample")) else parsed.render(Sample(""), item)

    @property
    def passes_at(self) -> float:
        """The reward from which an answer passes, as pass@k counts it."""
        threshold = getattr(self, "pass_threshold", None)
        return 1.0 if threshold is None else float(threshold)

    @property
    def needs_model(self) -> bool:
        """Returns whether a model has to score the answers."""
        return False

    @property
    def process_bytes(self) -> int:
        """Returns the memory that processes of the grader may take."""
        return 0

    @property
    def compares(self) -> bool:
        """Returns whether the score of an answer depends on the other answers to its row."""
        return False

    def wrong(self, name: str, says: str, hint: str) -> UsageError:
        """The error for a field."""
        return UsageError(f"{name} of the grader {self.name} {says}", hint)

    def to_json(self) -> dict[str, Any]:
        """The canonical JSON: type and name first, without what is at its default."""
        found: dict[str, Any] = {"type": self.type, "name": self.name}
        for spec in written_fields(type(self)):
            value = getattr(self, spec.name)
            if spec.name != "name" and (is_required(spec) or value != spec.default):
                found[spec.name] = value
        return json.loads(json.dumps(found, default=_plain))  # type: ignore[no-any-return]

    def with_model(self, model: ScoreModel, **means: Any) -> Grader:
        """The same grader, for which this model scores answers. means: the other ones of `read_grader`."""
        return read_grader(self.to_json(), model=model, **means)

    @classmethod
    def read(cls, given: Mapping[str, Any], means: Means) -> Grader:
        """A grader of this type from the fields of its JSON. Raises UsageError."""
        return cls(**checked_fields(cls, given), **cls.beside(means))

    @classmethod
    def beside(cls, means: Means) -> dict[str, Any]:  # noqa: ARG003 (of those that need some)
        """The fields of the grader that come from `means`."""
        return {}


class OneByOne(Grader):
    """A grader for which an answer has nothing to do with the others."""

    @abstractmethod
    def score(self, sample: Sample, item: Mapping[str, Any]) -> float:
        """The reward. Raises Ungraded for an answer that cannot be graded."""

    def grade(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        return [self._grade(sample, item) for sample, item in zip(samples, items, strict=True)]

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        try:
            reward = reward_of(in_time(lambda: self.score(sample, item), self.name))
        except Ungraded as ungraded:
            return Grade(0.0, errors=ungraded.errors)
        except RecursionError:  # of JSON that is nested without end
            return Grade(0.0, errors={"sample_parse_error": True})
        return Grade(0.0, errors={"other_error": True}) if reward is None else Grade(reward)


def template(default: Any = MISSING) -> Any:
    """A field whose text may have variables of the row and of the answer."""
    return field(default=default, metadata={"template": True})


# ---- reading ---------------------------------------------------------------------------------------------------------

_registry: Registry[Grader] = Registry(__package__, "grader", ("type",))
register, grader_types = _registry.register, _registry.all


def read_grader(written: Mapping[str, Any], *, model: ScoreModel | None = None, allow_python: bool = True,
                allow_unsafe_python: bool = False) -> Grader:
    """A grader from its JSON. Raises UsageError for an unknown type, and for fields that are unknown, missing or wrong.

    model: what score_model asks; without, such a grader is read and checked, and cannot grade. allow_python: without,
    python graders are refused. allow_unsafe_python: also run them where the kernel has no filter for system calls.
    """
    return read_within(written, Means(model, allow_python, allow_unsafe_python))


def read_within(written: Any, means: Means) -> Grader:
    """Reads a grader; parameters and errors are those of `read_grader`."""
    if not isinstance(written, Mapping):
        raise UsageError(f"a grader is {in_words(written)}", 'write an object: {"type": "string_check", ...}')
    given = dict(written)
    kind = given.pop("type", None)
    known = grader_types()
    if isinstance(kind, str) and kind in REFUSED:
        what, hint = REFUSED[kind]
        raise UsageError(f"the grader {kind} {what}", hint)
    if not isinstance(kind, str) or kind not in known:
        near = get_close_matches(kind, known, n=1) if isinstance(kind, str) else []
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
        raise UsageError(f"the type of a grader is {kind!r:.80}" if kind is not None else "a grader has no type", hint)
    return known[kind].read(given, means)


def load_grader(path: Path, **means: Any) -> Grader:
    """The grader of a JSON file; means: as `read_grader` takes them. Raises UsageError."""
    try:
        text = read_small(path).decode()
    except OSError as error:
        raise UsageError(f"the grader {path} cannot be read ({error.strerror})", "name a JSON file") from None
    except UnicodeDecodeError:
        raise UsageError(f"the grader {path} is not UTF-8", "save the file as UTF-8") from None
    try:
        written = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise UsageError(f"the grader {path} is not JSON ({reason}, line {getattr(error, 'lineno', 1)})",
                         'write an object: {"type": "string_check", ...}') from None
    return read_grader(written, **means)


def written_fields(kind: type[Grader]) -> list[Field[Any]]:
    """The fields of a type's JSON, apart from its type."""
    return [spec for spec in fields(kind) if spec.metadata.get("written", True)]


def is_required(spec: Field[Any]) -> bool:
    return spec.default is MISSING and spec.default_factory is MISSING


def checked_fields(kind: type[Grader], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values for a type's fields. Raises UsageError for the first that is unknown, missing or of another type."""
    specs = {spec.name: spec for spec in written_fields(kind)}
    whose = f"the grader {given.get('name', kind.type)!s:.80} ({kind.type})"
    for name in given:
        if name not in specs:
            near = get_close_matches(str(name), specs, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its fields are {', '.join(specs)}"
            raise UsageError(f"{whose} has no field {name!r:.80}", hint)
    missing = [name for name, spec in specs.items() if name not in given and is_required(spec)]
    if missing:
        raise UsageError(f"{whose} lacks the field {missing[0]}", f"it needs {', '.join(map(str, missing))}")
    hints = get_type_hints(kind)
    for name, value in given.items():
        if not fits(value, hints[name]):
            raise UsageError(f"{name} of {whose} is {in_words(value)}", f"give {made_of(hints[name])}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Grader):
        return value.to_json()
    raise TypeError(f"{type(value).__name__} is no part of a grader's JSON")


@contextmanager
def needing(kind: str) -> Iterator[None]:
    """Converts the error for a missing package of a type of grader to an EdgetuneError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in PACKAGES:
            raise
        raise EdgetuneError(f"the grader {kind} needs the package {name}, which is not installed",
                            install_hint("graders")) from None
