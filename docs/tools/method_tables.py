"""The tables of docs/reference/methods.md: all methods, and the options of each, from their classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field
from typing import Any

from option_tables import flags

from edgetune.objectives.base import Objective, objectives
from edgetune.objectives.drawn import Drawn, Rewarded
from edgetune.objectives.policy import PolicyGradient
from edgetune.options import declared, default_text

SHARED = {Drawn: "Options for drawing answers", Rewarded: "Options for rewards",
          PolicyGradient: "Options of policy gradients"}
ROWS = {  # of each module that reads rows: their name, and their keys
    "rows": ("question and answer, messages, or text",
             '{"prompt": ..., "completion": ...}, {"messages": [...]}, {"text": ...}'),
    "preferences": ("pairs", '{"prompt": ..., "chosen": ..., "rejected": ...}'),
    "unpaired": ("answers with a label", '{"prompt": ..., "completion": ..., "label": true}'),
    "ranked": ("several answers with rewards", '{"prompt": ..., "completions": [...], "rewards": [...]}'),
    "prompts": ("prompts", '{"prompt": ...}, {"messages": [...]}'),
    "attempts": ("a right answer and attempts",
                 '{"prompt": ..., "completion": ..., "attempts": [...], "labels": [...]}'),
    "again": ("prompts", '{"prompt": ...}, {"messages": [...]}'),
    "tutored": ("answers, a reference and a judgment",
                '{"prompt": ..., "completion": ..., "reference": ..., "judgment": ...}'),
    "privileged": ("question, answer and context", '{"prompt": ..., "completion": ..., "privileged_context": ...}'),
    "labelled": ("question and label, or JSON", '{"prompt": ..., "completion": ...}, {"messages": [...]}'),
    "paired": ("query and passage", '{"anchor": ..., "positive": ...}')}
Option = Field[Any]


def summary() -> Iterator[str]:
    """A line for each method."""
    yield from ("| method | rows | default `lr` | reference model |", "|---|---|---|---|")
    others = {}
    for name, kind in objectives().items():
        rate = kind.defaults.get("lr", "auto")
        rate = rate if isinstance(rate, str) else f"{rate:.0e}".replace("e-0", "e-")
        rows, _ = rows_of(kind)
        if kind.needs_files or kind.method != name.replace("-", "_"):
            others[name] = "none, as it needs a file" if kind.needs_files else f"`{kind.method}`"
        yield f"| [{name}](#{name}) | {rows} | {rate} | {reference(kind)} |"
    named = "; ".join(f"of {name} {text}" for name, text in others.items())
    yield from ("", f"The `type` of a job's `method` is its name, with underscores; {named}. Its class is in the "
                "module of that name in `edgetune.objectives`.")


def row_shapes() -> Iterator[str]:
    """A line for each kind of rows."""
    yield from dict.fromkeys(f"- {name}: `{keys}`" for name, keys in map(rows_of, objectives().values()))


def rows_of(kind: type[Objective]) -> tuple[str, str]:
    return ROWS[kind.rows.__name__.rpartition(".")[2]]


def reference(kind: type[Objective]) -> str:
    """Whether log p of the reference model are computed; where options decide, by their defaults."""
    if kind.needs_files:
        return "no, a file"
    is_needed = kind().needs_reference
    if isinstance(vars_of(kind, "needs_reference"), property):
        return "yes, unless its weights are 0" if is_needed else "with `beta` above 0"
    return "yes" if is_needed else "no"


def vars_of(kind: type[Objective], name: str) -> object:
    """An attribute of a class as it is declared, a property as such."""
    return next(vars(base)[name] for base in kind.__mro__ if name in vars(base))


def parent_of(kind: type[Objective]) -> type[Objective] | None:
    """The nearest class whose options are listed: another method's, or a common one."""
    listed = {*objectives().values(), *SHARED}
    return next((base for base in kind.__mro__[1:] if base in listed), None)


def options_of(kind: type[Objective]) -> Iterator[Option]:
    """The options that its parent lacks, or has with another text or range."""
    known = known_to(kind)
    return (spec for spec in declared(kind) if spec.name not in known or known[spec.name].metadata != spec.metadata)


def known_to(kind: type[Objective]) -> dict[str, Option]:
    """The options of its parent, by name."""
    parent = parent_of(kind)
    return {spec.name: spec for spec in declared(parent)} if parent else {}


def inherited(kind: type[Objective]) -> Iterator[str]:
    """A sentence on the options that it has from its parent, with the defaults that differ."""
    parent = parent_of(kind)
    if not parent:
        return
    title = SHARED.get(parent) or f"Options of {parent.name}"
    known = known_to(kind)
    other = [f"{flags([spec.name])} {default_text(spec.default, spec.metadata['zero'])}" for spec in declared(kind)
             if spec.name in known and known[spec.name].metadata == spec.metadata
             and known[spec.name].default != spec.default]
    place = SHARED[parent].lower().replace(" ", "-") if parent in SHARED else parent.name
    yield from (f"All [{title[0].lower()}{title[1:]}](#{place}){', with ' if other else ''}{', '.join(other)}.", "")
