"""Options by which something is put around every question: --prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

AROUND = ("prompt_file",)  # fields of Serving that are put around questions, here also where a daemon computes


def around_options(command: F) -> F:
    return click.option("--prompt", "prompt_file", type=click.Path(path_type=Path),
                        help="Prompt file: system message and examples of chats that have no system message.")(command)


@contextmanager
def around_of(serving: Serving, system: str = "") -> Iterator[Instruction]:
    """Opens what the options put around questions. system: what --system says. Raises UsageError where both say it."""
    refuse_both(serving, system)
    if all(getattr(serving, name) is None for name in AROUND):
        yield None
        return
    from ..serving.around import opened_around
    with opened_around(serving.prompt_file, serving.threads) as found:
        yield found


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
    return found, replace(serving, prompt_file=None)


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
    if serving.prompt_file is not None:
        raise UsageError(f"--prompt {serving.prompt_file} is given, {why}", "leave it out")
