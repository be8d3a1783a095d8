"""Options by which something is put around every question: --prompt and --index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import UsageError
from .app import F

if TYPE_CHECKING:
    from ..data.around import Instruction
    from ..formats.gguf import Gguf
    from .answer import Serving

# fields of Serving that are put around questions, here also where a daemon computes
AROUND = ("prompt_file", "index", "passages")


def around_options(command: F) -> F:
    for option in (
            click.option("--passages", type=click.IntRange(1, 50),
                         help="With --index: passages of a question at most [3]."),
            click.option("--index", type=click.Path(path_type=Path), help="Index of documents (edgetune index), whose "
                         "passages are put before a question."),
            click.option("--prompt", "prompt_file", type=click.Path(path_type=Path),
                         help="Prompt file: system message and examples of chats that have no system message.")):
        command = option(command)
    return command


@contextmanager
def around_of(serving: Serving, system: str = "") -> Iterator[Instruction]:
    """Opens what the options put around questions. system: what --system says. Raises UsageError where both say it."""
    refuse_both(serving, system)
    if serving.index is None and serving.passages is not None:
        raise UsageError(f"--passages {serving.passages} is given without --index", "name an index of documents")
    if serving.prompt_file is None and serving.index is None:
        yield None
        return
    from ..data.around import together
    from ..retrieval.passages import USUAL, open_passages
    from ..serving.prompt_file import opened_around
    with ExitStack() as opened:
        around = opened.enter_context(opened_around(serving.prompt_file, serving.threads))
        passages = None
        if serving.index is not None:
            passages = open_passages(serving.index, serving.passages or USUAL, serving.threads)
            opened.callback(passages.close)
        yield together(around, passages)


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
    return found, replace(serving, prompt_file=None, index=None, passages=None)


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
    for flag, value in (("--prompt", serving.prompt_file), ("--index", serving.index),
                        ("--passages", serving.passages)):
        if value is not None:
            raise UsageError(f"{flag} {value} is given, {why}", "leave it out")


def sources_of(served: Any, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The sources of an answer, where an index is put around chats; else None."""
    from ..retrieval.passages import passages_in
    passages = passages_in(getattr(served, "around", None))
    return None if passages is None else passages.sources(messages)


def sources_text(sources: Sequence[dict[str, Any]]) -> str:
    """The sources of an answer for a person."""
    if not sources:
        return "the index has nothing about this"
    return "sources: " + "; ".join(f"[{number}] {source['source']}" for number, source in enumerate(sources, 1))
