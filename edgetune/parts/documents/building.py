"""Makes an index of a folder, or makes it again: files that did not change are taken from the index that there is.

The result is a function of the folder, the encoder and the options, whatever the index held before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...disk import alone, refusal, replaced, sha256
from ...errors import BudgetError, DataError, FormatError, UsageError, size_text
from ...options import check_options
from .chunks import Chunk, chunks
from .integrity import APPLICATION, header_of
from .options import IndexOptions
from .paragraphs import DocumentFile, files_of, paragraphs
from .search import QUERIES, ChunkRanking, Encoding
from .store import PAGE_CACHE, VERSION, Bytes, IndexStore

AT_ONCE = 64  # chunks of which vectors are made together
BASE = 96 << 20  # bytes of Python and its libraries
COPIES = 4  # of a file's bytes, while it is divided
OnProgress = Callable[[str, float, float], None]


@dataclass
class Report:
    """What an indexing did. read, unchanged, removed: files. skipped: those that could not be read, and why."""

    index: str
    files: int = 0
    chunks: int = 0
    read: int = 0
    unchanged: int = 0
    removed: int = 0
    tokens: int = 0
    bytes: int = 0
    least_evidence: float = 0.0
    skipped: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def build(folder: Path, index: Path, encoding: Encoding, options: IndexOptions | None = None, memory: int = 0,
          on_progress: OnProgress | None = None) -> Report:
    """Makes the index of a folder, or of one document: see `build_of`. Raises UsageError for what is neither."""
    return build_of(files_of(folder), index, encoding, options, memory, on_progress)


def build_of(files: Sequence[DocumentFile], index: Path, encoding: Encoding, options: IndexOptions | None = None,
             memory: int = 0, on_progress: OnProgress | None = None) -> Report:
    """Makes the index of files, sorted by their names. What cannot be read is skipped and reported.

    memory: bytes of this process at most; 0: no limit. on_progress gets the bytes read, and those of all. Raises
    UsageError for options, BudgetError where memory does not suffice, DiskError, and FormatError for a file at `index`
    that is no index.
    """
    options = options or IndexOptions()
    check_options(options)
    if index.exists() and not index.is_file():  # before anything is computed
        raise UsageError(f"the index {index} is {'a folder' if index.is_dir() else 'no file'}", "name a file")
    if not index.parent.is_dir():
        raise UsageError(f"there is no folder {index.parent} for the index", "make it first")
    if options.chunk_tokens > encoding.longest - 2:
        raise UsageError(f"chunk-tokens is {options.chunk_tokens}, {encoding.name} reads {encoding.longest - 2}",
                         "lower --chunk-tokens")
    require_memory(encoding, max((file.size for file in files), default=0), memory)
    facts = {"encoder": encoding.name, "encoder_sha256": encoding.digest, **asdict(options)}
    before = _before(index, facts)
    try:
        return _Building(index, encoding, options, facts, before, on_progress).run(files)
    finally:
        if before:
            before.close()


def require_memory(encoding: Encoding, largest: int, memory: int) -> None:
    """Raises BudgetError where an indexing would take more. largest: bytes of the largest file."""
    needed = BASE + encoding.nbytes + 2 * (PAGE_CACHE << 10) + COPIES * largest
    if memory and needed > memory:
        least = -(-needed >> 20)  # MiB, rounded up
        raise BudgetError(f"indexing with {encoding.name} needs {least} MiB, memory is {size_text(memory)}",
                          f"give it --memory {least}M, divide the largest file, or name a smaller encoder", needed)


def _before(index: Path, facts: dict[str, Any]) -> IndexStore | None:
    """The index that there is, if it is as it was written, by the same encoder and options. Raises FormatError for a
    file that is no index: it stays as it is.
    """
    if not index.exists():
        return None
    with ExitStack() as opened:
        try:
            store = opened.enter_context(closing(IndexStore(index)))
            if facts.items() <= store.facts().items() and store.is_as_written():
                opened.pop_all()
                return store
        except FormatError:
            if header_of(index) != (APPLICATION, VERSION):
                raise
    return None


class _Building:
    def __init__(self, index: Path, encoding: Encoding, options: IndexOptions, facts: dict[str, Any],
                 before: IndexStore | None, on_progress: OnProgress | None) -> None:
        self._index = index
        self._encoding = encoding
        self._options = options
        self._facts = facts
        self._before = before
        self._known = before.files() if before else {}
        self._tell = on_progress or (lambda *_: None)
        self._report = Report(str(index))
        self._done = self._total = 0  # bytes

    def run(self, files: Sequence[DocumentFile]) -> Report:
        report = self._report
        report.removed = len(set(self._known) - {file.name for file in files})
        if self._before and self._is_current(files):
            return self._of_before(self._before)
        with alone(self._index.parent), replaced(self._index) as beside:
            beside.unlink(missing_ok=True)  # of an indexing that broke off
            store = IndexStore(beside, writes=True)
            try:
                store.begin()
                store.create(self._facts, self._encoding.width)
                self._add_all(store, files)
                report.least_evidence = ChunkRanking(store, self._encoding).limit(
                    lambda number: self._tell("trying questions", number, QUERIES))
                store.set_facts({"least_evidence": report.least_evidence, "chunks": report.chunks})
                store.commit()
            finally:
                store.close()
            report.bytes = beside.stat().st_size
        return report

    def _is_current(self, files: Sequence[DocumentFile]) -> bool:
        """Whether nothing changed since the index was made."""
        with suppress(DataError):  # a file that cannot be read any more
            return not self._report.removed and all(
                file.name in self._known and _digest(file) == self._known[file.name].sha256 for file in files)
        return False

    def _of_before(self, before: IndexStore) -> Report:
        report = self._report
        report.files = report.unchanged = len(self._known)
        report.chunks, report.tokens = before.totals()
        report.least_evidence = before.facts()["least_evidence"]
        report.bytes = self._index.stat().st_size
        return report

    def _add_all(self, store: IndexStore, files: Sequence[DocumentFile]) -> None:
        self._total = sum(file.size for file in files)
        for file in files:
            self._go_on()
            try:
                self._add(store, file)
            except DataError as error:
                if refusal(error):  # it says nothing of the document
                    raise
                self._report.skipped.append({"file": file.name, "reason": error.what})
            self._done += file.size
        self._go_on()

    def _go_on(self) -> None:
        """Tells how far it is, before each piece of work: the caller may end it by an exception."""
        self._tell("indexing", self._done, self._total)

    def _add(self, store: IndexStore, file: DocumentFile) -> None:
        known = self._known.get(file.name)
        digest = _digest(file)
        report = self._report
        if known and self._before and known.sha256 == digest:
            pairs = self._before.chunks_of(known.id)
            report.unchanged += 1
        else:
            pairs = self._read(file)
            report.read += 1
        id = store.add_file(file.name, file.size, file.changed, digest)
        report.files += 1
        while part := list(islice(pairs, AT_ONCE)):
            store.add_chunks(id, [chunk for chunk, _ in part], np.stack([vector for _, vector in part]))
            report.chunks += len(part)
            report.tokens += sum(chunk.tokens for chunk, _ in part)

    def _read(self, file: DocumentFile) -> Iterator[tuple[Chunk, Bytes]]:
        """The chunks of a file with their vectors. The file is read to its end before the first."""
        options = self._options
        found = []
        for chunk in chunks(paragraphs(file.path, file.name), self._encoding.count, options.chunk_tokens,
                            options.overlap):
            self._go_on()
            found.append(chunk)
        return self._encoded(found)

    def _encoded(self, found: list[Chunk]) -> Iterator[tuple[Chunk, Bytes]]:
        for begin in range(0, len(found), AT_ONCE):
            self._go_on()
            part = found[begin:begin + AT_ONCE]
            yield from zip(part, self._encoding.vectors([chunk.whole for chunk in part]), strict=True)


def _digest(file: DocumentFile) -> str:
    """The SHA-256 of a file: a file can change and keep its size and time."""
    try:
        return sha256(file.path)
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {error.strerror}", "look at its rights") from None
