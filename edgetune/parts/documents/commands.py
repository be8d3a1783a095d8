"""documents index and search, and --index and --passages of the commands that ask a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cli.app import ModelPath, cli, command, config_options, out, show, step_progress, threads_option
from ...cli.serving import AroundOptions
from ...errors import UsageError, shell_word, size_text
from .options import IndexOptions

if TYPE_CHECKING:
    from ...data.around import Instruction
    from .building import Report
    from .search import Found

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


MADE_BY = "minilm"  # the encoder, unless another is named
LISTED = 10  # files that are named one by one


@cli.group("documents")
def documents() -> None:
    """Index documents, and search them.

    edgetune serve --index FILE answers from an index.
    """


@command("index", click.argument("folder", type=click.Path(path_type=Path)),
         click.option("-o", "--out", "out_file", type=click.Path(path_type=Path), required=True,
                      help="File of the index; one that exists is brought up to date."),
         click.option("--encoder", type=ModelPath(), default=MADE_BY, show_default=True,
                      help="Model that makes the vectors."),
         config_options("chunk_tokens", "overlap", of=IndexOptions),
         click.option("--memory", default="", help="Memory of this process at most, such as 500M or 25% [75% of what "
                      "is available]."),
         threads_option,
         group=documents)
def index_command(folder: Path, out_file: Path, encoder: Path, memory: str, threads: int, as_json: bool,
                  **options: Any) -> None:
    """Make a searchable index of the documents in FOLDER.

    It reads plain text, Markdown, PDF and JSON Lines, and writes one file. The second time only files that changed are
    read. What cannot be read is named, and left out.
    """
    from ...training.config import TrainConfig
    from .building import build
    from .search import Encoding
    found = Encoding(encoder, threads)
    try:
        with step_progress(out, as_json) as progress:
            report = build(folder, out_file, found, IndexOptions(**options), TrainConfig(memory=memory).memory_here(),
                           progress.step)
    finally:
        found.close()
    show(as_json, report.to_json(), *_reported(report))


def _reported(report: Report) -> list[Any]:
    from ...console import Copyable
    lines: list[Any] = [f"{report.chunks:,} chunks of {report.files:,} files, {report.tokens:,} tokens, "
                        f"{size_text(report.bytes)}",
                        f"files: {report.read} read, {report.unchanged} unchanged, {report.removed} removed"]
    lines += [f"left out: {skipped['file']}: {skipped['reason']}" for skipped in report.skipped[:LISTED]]
    if (more := len(report.skipped) - LISTED) > 0:
        lines.append(f"left out: {more} more; --json lists all")
    return [*lines, Copyable(f"edgetune documents search {shell_word(report.index)} \"your question\"")]


@command("search", click.argument("index", type=click.Path(path_type=Path)), click.argument("query"),
         click.option("--limit", type=int, default=5, show_default=True, help="Passages at most."),
         click.option("--least", type=click.FloatRange(0, 1), default=None,
                      help="Evidence below which nothing was found, from 0 to 1 [the index's own]."),
         threads_option,
         group=documents)
def search_command(index: Path, query: str, limit: int, least: float | None, threads: int, as_json: bool) -> None:
    """Find the passages of INDEX that answer QUERY.

    Words (BM25) and meaning (vectors) decide together. If the index does not answer the query, it says so.
    """
    from .search import Index
    with Index(index, threads) as opened:
        found = opened.search(query, limit, least)
    show(as_json, found.to_json(), *_found(found))


def _found(found: Found) -> list[Any]:
    from ...console import Copyable
    if not found.passages:
        return [f"nothing was found: the evidence is {found.evidence:.2f}, the least {found.least:.2f} "
                "(--least 0 shows the nearest passages)"]
    lines: list[Any] = []
    for number, passage in enumerate(found.passages, 1):
        lines += [Copyable(f"{number}. {passage.source}  {passage.score:.2f}"), Copyable(f"{passage.text}\n")]
    return lines
