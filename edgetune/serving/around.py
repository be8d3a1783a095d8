"""Opens what is put around the questions to a served model: the prompt of a file.

The seam is `data.around.Around`. `ServedModel.around` applies it to chats, also those of the daemon, and rows are
rendered with it where it is given in place of a system message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..data.around import Instruction, together
from .prompt_file import open_prompt


@contextmanager
def opened_around(prompt: Path | None = None, threads: int = 0) -> Iterator[Instruction]:
    """What is put around chats, in this order: the prompt of a file, then what belongs near the question. None without
    any. Raises the errors of open_prompt.
    """
    with ExitStack() as opened:
        parts: list[Instruction] = []
        if prompt is not None:
            parts.append(found := open_prompt(prompt, threads))
            opened.callback(found.close)
        yield together(*parts)
