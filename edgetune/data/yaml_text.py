"""Text in YAML that others wrote, read within bounds: what can be read has the size of its text.

It may hold mappings, lists, texts, numbers, true, false and null. A text of 500 bytes can stand for gigabytes by
anchors, so these are refused, as tags and directives are. A date stays a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NoReturn

from ..errors import DataError, size_text

MAX_BYTES = 4 << 20  # of a text
MAX_VALUES = 200_000  # in a text: each takes some 100 bytes, however short it is
MAX_LEVELS = 100  # of lists and mappings within one another, as in a row of JSON
MAX_DIGITS = 100  # characters of a number: printing a long one takes the square of its length
PLAIN = ("null", "bool", "int", "float")  # types of a text without quotation marks, by its form
MEND = "mend that line"
_DIRECTIVE = re.compile(r"^%", re.MULTILINE)
HALF_PAIR = re.compile(r"[\ud800-\udfff]")


def read_yaml(content: str | bytes, name: str, limit: int = MAX_BYTES) -> Any:
    """The value that a text in YAML says; None for an empty one. name: of the text, for errors. limit: its bytes.

    Raises DataError for what is no YAML or goes beyond the bounds of this module, ModuleNotFoundError without pyyaml.
    """
    import yaml
    text = _decoded(content, name, limit)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is faster, and not in every build
    try:
        return _Reader(yaml, yaml.parse(text, Loader=loader), name).document()
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two of an escape that is no character
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1} of {name}" if mark else name
        what = getattr(error, "problem", None) or str(error)
        raise DataError(f"{place} is not YAML: {' '.join(what.split())}", MEND) from None


def write_yaml(value: Any, width: int = 110) -> str:
    """The text that `read_yaml` reads as `value`: what is in it twice is written twice. width: characters of a line."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]  # pyyaml has no types
        def ignore_aliases(self, _value: Any) -> bool:
            return True

    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=width))


def _decoded(content: str | bytes, name: str, limit: int) -> str:
    if len(content) > limit:
        raise DataError(f"{name} is larger than {size_text(limit)}", "leave out what is not needed")
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1 if isinstance(content, bytes) else 1
        raise DataError(f"line {line} of {name} is not UTF-8", "save the file as UTF-8") from None
    for wrong, what in ((HALF_PAIR, "has half a pair of surrogates"), (_DIRECTIVE, "begins with %, as a directive")):
        if found := wrong.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise DataError(f"line {line} of {name} {what}", "leave it out")
    return text


class _Reader:
    """Makes a value of a parser's events, as they come."""

    def __init__(self, yaml: Any, events: Iterator[Any], name: str) -> None:
        self._yaml = yaml
        self._types = yaml.resolver.Resolver()
        self._scalars = yaml.constructor.SafeConstructor()
        self._events = events
        self._name = name
        self._levels = 0
        self._values = 0

    def document(self) -> Any:
        """The value of the only document; None without one."""
        yaml = self._yaml
        next(self._events)  # the text begins
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events))
        next(self._events)  # the document ends
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            self._refuse(event, "begins a second document", "leave out the lines --- but the first")
        return value

    def _value(self, event: Any) -> Any:
        yaml = self._yaml
        self._check(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        self._levels += 1
        if self._levels > MAX_LEVELS:
            self._refuse(event, f"is nested more than {MAX_LEVELS} levels deep", "leave out what is not needed")
        found = self._list() if isinstance(event, yaml.SequenceStartEvent) else self._mapping()
        self._levels -= 1
        return found

    def _list(self) -> list[Any]:
        found = []
        while not isinstance(event := next(self._events), self._yaml.SequenceEndEvent):
            found.append(self._value(event))
        return found

    def _mapping(self) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        while not isinstance(event := next(self._events), self._yaml.MappingEndEvent):
            key = self._value(event)
            if isinstance(key, list | dict):
                self._refuse(event, "has a list or a mapping as a key", "put it between quotes")
            if key in found:
                self._refuse(event, f"has the key {key!r:.60} a second time", "leave one of them out")
            found[key] = self._value(next(self._events))
        return found

    def _check(self, event: Any) -> None:
        """Refuses what makes a text mean more than it says."""
        if getattr(event, "anchor", None) is not None:  # of an alias, too
            self._refuse(event, f"has the anchor or alias {event.anchor!r:.60}", "write the value where it is needed, "
                         "or put the text between quotes")
        if event.tag is not None:
            self._refuse(event, f"has the tag {event.tag!r:.60}", "leave it out, or put the text between quotes")
        self._values += 1
        if self._values > MAX_VALUES:
            self._refuse(event, f"goes beyond {MAX_VALUES} values", "leave out what is not needed")

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if HALF_PAIR.search(text):  # by an escape
            self._refuse(event, "has half a pair of surrogates", "leave it out")
        if not event.implicit[0]:  # it has quotation marks
            return text
        tag = self._types.resolve(self._yaml.ScalarNode, text, (True, False))
        kind = tag.rpartition(":")[2]
        if kind not in PLAIN:
            return text
        if len(text) > MAX_DIGITS:
            self._refuse(event, f"has a number of {len(text)} characters, the limit is {MAX_DIGITS}",
                         "put it between quotes")
        try:
            return getattr(self._scalars, f"construct_yaml_{kind}")(self._yaml.ScalarNode(tag, text))
        except ValueError:  # such as 0b_, which has the form of a number only
            return text

    def _refuse(self, event: Any, what: str, hint: str) -> NoReturn:
        raise DataError(f"line {event.start_mark.line + 1} of {self._name} {what}", hint)
