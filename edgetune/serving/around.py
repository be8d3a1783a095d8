"""Opens what is put around the questions to a served model: the prompt of a file.

The seam is `data.around.Around`. `ServedModel.around` applies it to chats, also those of the daemon, and rows are
rendered with it where it is given in place of a system message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..data.around import Instruction
from .prompt_file import open_prompt


@contextmanager
def opened_around(prompt: Path | None = None, threads: int = 0) -> Iterator[Instruction]:
    """The prompt of a file; None without one. Raises the errors of open_prompt."""
    if prompt is None:
        yield None
        return
    with closing(open_prompt(prompt, threads)) as found:
        yield found
