"""--index and --passages of the commands that ask a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cli.serving import AroundOptions
from ...errors import UsageError

if TYPE_CHECKING:
    from ...data.around import Instruction


@contextmanager
def _opened(values: Mapping[str, Any], threads: int) -> Iterator[Instruction]:
    index, passages = values.get("index"), values.get("passages")
    if index is None:
        if passages is not None:
            raise UsageError(f"--passages {passages} is given without --index", "name an index of documents")
        yield None
        return
    from .passages import USUAL, open_passages
    with closing(open_passages(index, passages or USUAL, threads)) as found:
        yield found


INDEX = AroundOptions({
    "index": {"type": click.Path(path_type=Path), "help": "Index of documents (edgetune documents index), whose "
              "passages are put before a question."},
    "passages": {"type": click.IntRange(1, 50), "help": "With --index: passages of a question at most [3]."}}, _opened)
