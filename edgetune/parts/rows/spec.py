"""The specification of a mixture: sources, their templates, and how they are mixed. `read_mixture` reads it.

    rows: 1200
    cap: 300
    few_shot: {share: 0.3, examples: 2}
    held_out: [test.jsonl]
    sources:
      commands:
        rows: commands.jsonl
        options: true
        templates:
          - "{prompt}"
          - "Which of {options} is meant by: {prompt}"
        inverted:
          - {prompt: "Write a sentence that means {completion}.", completion: "{prompt}"}
    replay: {rows: general.jsonl, share: 0.1}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError, UsageError
from .spec_file import Template, read_part, read_spec

PROMPT, COMPLETION, OPTIONS = "prompt", "completion", "options"
REPLAY = "replay"  # the name of its rows in a report


@dataclass(frozen=True)
class Wording:
    """A template of a question and one of its answer."""

    prompt: Template
    completion: Template


@dataclass(frozen=True)
class FewShot:
    """share: of rows that begin with examples of their source. examples: how many each has at most."""

    share: float = 0.0
    examples: int = 2


@dataclass(frozen=True)
class RowSource:
    """Rows of one task. options: the answers to choose from, for the slot {options}; True: those that occur in the
    rows. weight: in place of the rows' number, for the source's share. repeat: how often a row may be taken, each time
    in another wording. as_it_is: its rows get no template and no examples.
    """

    name: str
    rows: tuple[Path, ...]
    templates: tuple[Wording, ...]
    inverted: tuple[Wording, ...] = ()
    options: bool | tuple[str, ...] = False
    weight: float | None = None
    repeat: int = 1
    as_it_is: bool = False


@dataclass(frozen=True)
class MixtureSpec:
    """A specification that was checked. rows: in all; 0: as many as there are. cap: rows of a source that count at most
    for its share; 0: all. near: the similarity from which two questions with one answer are the same. inverted: the
    share of rows that ask for the question, of sources with inverted templates. replay: general rows, taken as they
    are, which have `replay_share` of all. most_options: answers that {options} lists at most. held_out: rows that no
    row may overlap.
    """

    sources: tuple[RowSource, ...]
    rows: int = 0
    cap: int = 0
    near: float = 0.9
    few_shot: FewShot = field(default_factory=FewShot)
    inverted: float = 0.1
    most_options: int = 12
    replay: tuple[Path, ...] = ()
    replay_share: float = 0.0
    held_out: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Written:
    """The keys of the file."""

    sources: dict[str, Any]
    rows: int = 0
    cap: int = 0
    near: float = 0.9
    few_shot: dict[str, Any] = field(default_factory=dict)
    inverted: float = 0.1
    most_options: int = 12
    replay: dict[str, Any] = field(default_factory=dict)
    held_out: str | list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class _WrittenSource:
    """The keys of a source."""

    rows: str | list[Any]
    templates: list[Any] = field(default_factory=lambda: ["{prompt}"])
    inverted: list[Any] = field(default_factory=list)
    options: bool | list[Any] = False
    weight: float | None = None
    repeat: int | None = None


@dataclass(frozen=True)
class _WrittenReplay:
    """The keys of the rows that are replayed."""

    rows: str | list[Any]
    share: float = 0.1


def read_mixture(path: Path) -> MixtureSpec:
    """The mixture that a file specifies; its paths are relative to its folder. Raises DataError and UsageError, which
    name the key, its value and its range.
    """
    written = read_part(_Written, read_spec(path), path.name)
    few = read_part(FewShot, written.few_shot, "few_shot")
    replay = read_part(_WrittenReplay, written.replay, REPLAY) if written.replay else None
    for name, value, most in (("near", written.near, 1), ("few_shot.share", few.share, 1),
                              ("inverted", written.inverted, 1), ("replay.share", replay.share if replay else 0, 0.9)):
        _in_range(name, value, 0, most)
    for name, count, least in (("rows", written.rows, 0), ("cap", written.cap, 0),
                               ("most_options", written.most_options, 2), ("few_shot.examples", few.examples, 1)):
        _in_range(name, count, least, 1 << 31)
    sources = tuple(_source(str(name), found, path.parent) for name, found in written.sources.items())
    if not sources:
        raise DataError(f"{path.name} has no sources", "name one or more below `sources:`")
    if REPLAY in written.sources:
        raise DataError(f"a source is called {REPLAY}, as the rows that are replayed", "give it another name")
    return MixtureSpec(sources, written.rows, written.cap, written.near, few, written.inverted, written.most_options,
                   _paths(replay.rows, path.parent, REPLAY) if replay else (), replay.share if replay else 0.0,
                   _paths(written.held_out, path.parent, "held_out") if written.held_out else ())


def _source(name: str, found: Any, folder: Path) -> RowSource:
    place = f"the source {name}"
    read = read_part(_WrittenSource, found, place)
    if read.repeat is not None:
        _in_range(f"repeat of {place}", read.repeat, 1, 1000)
    if read.weight is not None:
        _in_range(f"weight of {place}", read.weight, 0, 1e9)
    if not read.templates:
        raise DataError(f"{place} has no templates", 'write some, or leave the key out for "{prompt}"')
    options = read.options if isinstance(read.options, bool) else tuple(map(str, read.options))
    templates = tuple(_wording(each, f"templates[{i}] of {place}", "{completion}")
                      for i, each in enumerate(read.templates))
    inverted = tuple(_wording(each, f"inverted[{i}] of {place}", "{prompt}") for i, each in enumerate(read.inverted))
    for i, wording in enumerate(templates):
        if not set(wording.prompt.slots) - {OPTIONS}:
            raise DataError(f"templates[{i}] of {place} asks the same of all rows", "put {prompt} in")
    for wording in (*templates, *inverted):
        if OPTIONS in wording.prompt.slots and not options:
            raise DataError(f"a template of {place} lists {{options}}, and the source has none",
                            "add `options: true` for the answers of its rows, or a list of them")
    repeat = read.repeat or len(templates)
    return RowSource(name, _paths(read.rows, folder, place), templates, inverted, options, read.weight, repeat)


def _wording(found: Any, place: str, completion: str) -> Wording:
    """A template: a text, which is that of the question, or a mapping with both."""
    given = {PROMPT: found} if isinstance(found, str) else found
    known = isinstance(given, Mapping) and PROMPT in given and given.keys() <= {PROMPT, COMPLETION}
    if not known or not all(isinstance(text, str) and text.strip() for text in given.values()):
        raise DataError(f"{place} is {found!r:.60}", "write a text, or the texts of prompt and completion")
    wording = Wording(Template(given[PROMPT]), Template(given.get(COMPLETION, completion)))
    if not {*wording.prompt.slots, *wording.completion.slots} - {OPTIONS}:
        raise DataError(f"{place} has no slot, so that all its rows would be the same",
                        "put {prompt}, {completion} or another key of the rows in")
    return wording


def _paths(found: Any, folder: Path, place: str) -> tuple[Path, ...]:
    names = [found] if isinstance(found, str) else list(found)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"the rows of {place} are {found!r:.60}", "name a file, or a list of files")
    return tuple(Path(name) if name.startswith("hf:") else folder / name for name in names)


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} is {value:g}", f"choose from {low:g} to {high:g}")
