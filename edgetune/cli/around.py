"""Options by which something is put around every question: --prompt, and those of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import UsageError
from ..manifest import manifests
from .app import F

if TYPE_CHECKING:
    from ..data.around import Instruction
    from ..formats.gguf import Gguf
    from .answer import Serving

# fields of Serving that are put around questions, here also where a daemon computes
AROUND = ("prompt_file", "more")


@dataclass(frozen=True)
class AroundOptions:
    """Options by which a part puts something around every question. flags: {name: what click.option takes}, None unless
    given. opened: takes their values and a number of threads, and yields the instruction, open. Raises UsageError.
    """

    flags: Mapping[str, Mapping[str, Any]]
    opened: Callable[[Mapping[str, Any], int], AbstractContextManager[Instruction]]


@cache
def more_around() -> tuple[AroundOptions, ...]:
    """Returns the options of the parts that have some."""
    return tuple(manifest.load(manifest.around) for manifest in manifests() if manifest.around)


def more_values(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the values of the parts' options out of a command's options."""
    return {name: options.pop(name) for each in more_around() for name in each.flags if name in options}


def around_options(command: F) -> F:
    flags = [(name, flag) for each in more_around() for name, flag in each.flags.items()]
    for name, flag in reversed(flags):
        command = click.option(f"--{name}", **flag)(command)
    return click.option("--prompt", "prompt_file", type=click.Path(path_type=Path), help="Prompt file: system message "
                        "and examples of chats that have no system message.")(command)


@contextmanager
def around_of(serving: Serving, system: str = "") -> Iterator[Instruction]:
    """Opens what the options put around questions. system: what --system says. Raises UsageError where both say it."""
    refuse_both(serving, system)
    has_more = any(value is not None for value in serving.more.values())
    if serving.prompt_file is None and not has_more:
        yield None
        return
    from ..data.around import together
    from ..serving.prompt_file import opened_around
    with ExitStack() as opened:
        around = [opened.enter_context(opened_around(serving.prompt_file, serving.threads))]
        around += [opened.enter_context(each.opened(serving.more, serving.threads)) for each in more_around()]
        yield together(*around)


def refuse_both(serving: Serving, system: str) -> None:
    """Raises UsageError where two options say what the system message is."""
    if serving.prompt_file is not None and system:
        raise UsageError(f"--system is given with --prompt {serving.prompt_file}, which a system message would hide",
                         "write it into the prompt file, or leave one of them out")


def taken_around(serving: Serving, system: str = "") -> tuple[Instruction, Serving]:
    """What the options put around questions, open until the command ends, and the options without these. Errors: those
    of `around_of`.
    """
    found = click.get_current_context().with_resource(around_of(serving, system))
    return found, replace(serving, prompt_file=None, more={})


def beside_around(options: dict[str, Any]) -> dict[str, Any]:
    """The options of serving without those that are put around questions."""
    return {name: value for name, value in options.items() if name not in AROUND}


def instruction_of(adapter: Path | None) -> Instruction:
    """What an adapter was trained with: its prompt, or its system message."""
    from ..adapters.store import read_system
    from ..serving.prompt_file import prompt_of
    return prompt_of(adapter) or read_system(adapter) or None


def longest_text(gguf: Gguf) -> int:
    """The most tokens that a model reads."""
    return cast(int, gguf.metadata[f"{gguf.architecture}.context_length"])


def refuse_around(serving: Serving, why: str) -> None:
    """Raises UsageError where something would be put around questions, and cannot be. why: the reason."""
    for flag, value in {"prompt": serving.prompt_file, **serving.more}.items():
        if value is not None:
            raise UsageError(f"--{flag} {value} is given, {why}", "leave it out")


def sources_of(served: Any, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The sources of an answer, if what is put around chats has some; else None."""
    from ..data.around import sourced
    found = sourced(getattr(served, "around", None))
    return found.sources(messages) if found else None


def sources_text(sources: Sequence[dict[str, Any]]) -> str:
    """The sources of an answer for a person."""
    if not sources:
        return "the index has nothing about this"
    return "sources: " + "; ".join(f"[{number}] {source['source']}" for number, source in enumerate(sources, 1))
