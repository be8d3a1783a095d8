"""An index on disk: one SQLite file with the files read, their chunks, their words (FTS5) and vectors (sqlite-vec).

Python's own sqlite3 often comes without extensions, so apsw opens the file: SQLite with FTS5, and sqlite-vec loaded.
Texts lie compressed, and the words without them. A file that is opened for reading is checked first: see integrity.py.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...disk import cannot_write
from ...errors import DiskFullError, EdgetuneError, FormatError, install_hint, lacking
from .chunks import Chunk
from .integrity import AGAIN, APPLICATION, Steps, check_schema, content_digest, header_of, limit_values, unpacked

Bytes = NDArray[np.int8]
VERSION = 1
CONTENT = "content_sha256"  # the fact that says what the others, and all tables, are
PAGE_CACHE = 8192  # KiB
SCHEMA = """
create table facts(name text primary key, value text not null) without rowid;
create table files(id integer primary key, name text not null unique, size integer not null, changed integer not null,
                   sha256 text not null);
create table chunks(id integer primary key, file integer not null references files(id), heading text not null,
                    page integer not null, line integer not null, tokens integer not null, text blob not null);
create index chunks_of_file on chunks(file);
create virtual table words using fts5(heading, text, content='', contentless_delete=1,
                                      tokenize='{tokenizer}');
create virtual table terms using fts5vocab(words, row);
create virtual table vectors using vec0(vector int8[{width}] distance_metric=cosine);
"""
TOKENIZER = ("porter", "unicode61", "remove_diacritics", "2")


@dataclass(frozen=True)
class Citation:
    """The place of a passage. file: its name in the folder; heading, page, line: as of Paragraph. id: of a file that
    was uploaded.
    """

    file: str
    heading: str = ""
    page: int = 0
    line: int = 0
    id: str = ""

    def __str__(self) -> str:
        place = f"{self.file}, page {self.page}" if self.page else f"{self.file}:{self.line}" if self.line \
            else self.file
        return f"{place} ({self.heading})" if self.heading else place

    def to_json(self) -> dict[str, Any]:
        found = {"file": self.file, "heading": self.heading or None, "page": self.page or None,
                 "line": self.line or None}
        return found | ({"file_id": self.id} if self.id else {})


@dataclass(frozen=True)
class Known:
    """A file that was read. changed: its time of change, in nanoseconds."""

    id: int
    name: str
    size: int
    changed: int
    sha256: str


class IndexStore:
    """An index, open. writes: to be changed in a transaction of which nothing stays unless it is committed.

    Raises FormatError for a file that is none, or damaged; EdgetuneError where a library is missing.
    """

    def __init__(self, path: Path, writes: bool = False) -> None:
        self.path = path
        self._apsw, extension = _libraries()
        self._writes = writes
        self._steps: Steps | None = None
        application, version = (APPLICATION, VERSION) if writes else header_of(path)
        if application != APPLICATION:
            raise FormatError(f"{path} is no index", "name a file that edgetune documents index made")
        if version != VERSION:
            raise FormatError(f"{path} is an index of version {version}, not {VERSION}", AGAIN)
        with self._errors():
            flags = self._apsw.SQLITE_OPEN_READWRITE | self._apsw.SQLITE_OPEN_CREATE if writes \
                else self._apsw.SQLITE_OPEN_READONLY
            self._db = self._apsw.Connection(str(path), flags=flags)
        try:
            self._prepare(extension)
        except BaseException:
            self.close()
            raise

    def _prepare(self, extension: str) -> None:
        with self._errors():
            self._db.enable_load_extension(True)
            self._db.load_extension(extension)
            self._db.enable_load_extension(False)
            limit_values(self._db, self._apsw)
            self._db.execute(f"pragma cache_size = -{PAGE_CACHE}").fetchall()
            if not self._writes:
                self._steps = Steps(self._db, self.path.stat().st_size)
                check_schema(self._db, self.path, SCHEMA.replace("{tokenizer}", " ".join(TOKENIZER)))
                self._check_counts()

    def _check_counts(self) -> None:
        """Each chunk has its words and its vector, and none is missing. Raises FormatError."""
        [(count, last)] = self._db.execute("select count(*), coalesce(max(id), 0) from chunks").fetchall()
        [(words, vectors)] = self._db.execute(
            "select (select count(*) from words_docsize), (select count(*) from vectors_rowids)").fetchall()
        written = self.facts().get("chunks", count)
        if not count == last == words == vectors == written:
            raise FormatError(f"{self.path} is damaged: it has {count} of {written} chunks, the words of {words} and "
                              f"{vectors} vectors", AGAIN)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as ours, and values that are not of an index."""
        apsw = self._apsw
        if self._steps:
            self._steps.begin()
        try:
            yield
        except apsw.FullError:
            raise DiskFullError(f"cannot write {self.path}: its disk is full", "make room, and index again") from None
        except apsw.InterruptError:
            raise FormatError(f"{self.path} is damaged: reading it takes more steps than one of its size needs",
                              AGAIN) from None
        except apsw.Error as error:
            if found := lacking(error):
                raise found from None
            if self._writes and isinstance(error, apsw.IOError | apsw.CantOpenError | apsw.ReadOnlyError):
                raise cannot_write(self.path, OSError(0, str(error))) from None
            raise FormatError(f"{self.path} is no index that can be read ({error})",
                              f"name one that edgetune documents index made, or {AGAIN}") from None
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{self.path} is damaged: {error}", AGAIN) from None

    # ---- writing ------------------------------------------------------------------------------------------------

    def create(self, facts: dict[str, Any], width: int) -> None:
        """Makes the tables of a new file. The file is one that is renamed when it is whole, so it needs no journal."""
        with self._errors():
            self._db.execute(f"pragma application_id = {APPLICATION}; pragma user_version = {VERSION}")
            self._db.execute(SCHEMA.format(width=width, tokenizer=" ".join(TOKENIZER)))
        self.set_facts(facts)

    def begin(self) -> None:
        """Begins the one transaction of a file that nobody else sees."""
        with self._errors():
            self._db.execute("pragma journal_mode = off; pragma synchronous = off; begin").fetchall()

    def commit(self) -> None:
        with self._errors():
            self._db.execute("insert into words(words) values('optimize')").fetchall()
            self.set_facts({CONTENT: content_digest(self._db, CONTENT)})
            self._db.execute("commit").fetchall()

    def set_facts(self, facts: dict[str, Any]) -> None:
        with self._errors():
            self._db.executemany("insert or replace into facts values(?, ?)",
                                 [(name, json.dumps(value)) for name, value in facts.items()])

    def add_file(self, name: str, size: int, changed: int, sha256: str) -> int:
        with self._errors():
            self._db.execute("insert into files(name, size, changed, sha256) values(?, ?, ?, ?)",
                             (name, size, changed, sha256))
        return int(self._db.last_insert_rowid())

    def add_chunks(self, file: int, chunks: Sequence[Chunk], vectors: Bytes) -> None:
        """vectors: [n, D]"""
        with self._errors():
            for chunk, vector in zip(chunks, vectors, strict=True):
                self._db.execute("insert into chunks(file, heading, page, line, tokens, text) values(?, ?, ?, ?, ?, ?)",
                                 (file, chunk.heading, chunk.page, chunk.line, chunk.tokens,
                                  zlib.compress(chunk.text.encode())))
                row = self._db.last_insert_rowid()
                self._db.execute("insert into words(rowid, heading, text) values(?, ?, ?)",
                                 (row, chunk.heading, chunk.text))
                self._db.execute("insert into vectors(rowid, vector) values(?, vec_int8(?))", (row, vector.tobytes()))

    # ---- reading ------------------------------------------------------------------------------------------------

    def is_as_written(self) -> bool:
        """Whether nothing has changed since `commit`. All of the file is read."""
        with self._errors():
            return bool(self.facts().get(CONTENT) == content_digest(self._db, CONTENT))

    def facts(self) -> dict[str, Any]:
        """What the index says of itself."""
        with self._errors():
            rows = self._db.execute("select name, value from facts").fetchall()
            return {name: json.loads(value) for name, value in (_typed(row, str, str) for row in rows)}

    def files(self) -> dict[str, Known]:
        with self._errors():
            rows = self._db.execute("select id, name, size, changed, sha256 from files order by name")
            return {row[1]: Known(*_typed(row, int, str, int, int, str)) for row in rows}

    def totals(self) -> tuple[int, int]:
        """Chunks, and their tokens."""
        with self._errors():
            [(count, tokens)] = self._db.execute("select count(*), coalesce(sum(tokens), 0) from chunks").fetchall()
        return int(count), int(tokens)

    def chunks_of(self, file: int) -> Iterator[tuple[Chunk, Bytes]]:
        """The chunks of a file with their vectors, in their order."""
        with self._errors():
            rows = self._db.execute("select chunks.id, text, heading, page, line, tokens from chunks where file = ? "
                                    "order by id", (file,))
            for row in rows:
                id, text, *place = _typed(row, int, bytes, str, int, int, int)
                yield Chunk(unpacked(text), *place), self.vector(id)

    def passage(self, chunk: int) -> tuple[Citation, str]:
        with self._errors():
            [row] = self._db.execute(
                "select name, heading, page, line, text from chunks join files on files.id = file where chunks.id = ?",
                (chunk,)).fetchall()
            *place, text = _typed(row, str, str, int, int, bytes)
            return Citation(*place), unpacked(text)

    def vector(self, chunk: int) -> Bytes:
        with self._errors():
            [row] = self._db.execute("select vector from vectors where rowid = ?", (chunk,)).fetchall()
            [found] = _typed(row, bytes)
        return np.frombuffer(found, np.int8)

    def terms_of(self, text: str) -> dict[str, str]:
        """The words of a text, by what the index has in their place: without endings and accents."""
        raw = text.encode()
        with self._errors():
            tokenizer = self._db.fts5_tokenizer(TOKENIZER[0], list(TOKENIZER[1:]))
            found = tokenizer(raw, self._apsw.FTS5_TOKENIZE_QUERY, None)
        return {term: raw[begin:end].decode() for begin, end, *terms in reversed(found) for term in terms}

    def holders(self, terms: Iterable[str]) -> dict[str, int]:
        """Numbers of chunks that hold each term; a term that none holds is left out."""
        with self._errors():
            found = {term: self._db.execute("select doc from terms where term = ?", (term,)).fetchall()
                     for term in terms}
        return {term: int(rows[0][0]) for term, rows in found.items() if rows}

    def by_words(self, words: Sequence[str], limit: int) -> list[tuple[int, float]]:
        """(chunk, BM25) of the best chunks with any of these words, the best first."""
        query = " OR ".join('"{}"'.format(word.replace('"', '""')) for word in words)
        if not query:
            return []
        with self._errors():
            rows = self._db.execute("select rowid, -bm25(words) from words where words match ? "
                                    "order by bm25(words), rowid limit ?", (query, limit))
            return [(row, float(score)) for row, score in rows]

    def by_vector(self, vector: Bytes, limit: int) -> list[tuple[int, float]]:
        """(chunk, cosine) of the nearest chunks, the nearest first."""
        with self._errors():
            rows = self._db.execute("select rowid, distance from vectors where vector match vec_int8(?) and k = ? "
                                    "order by distance", (vector.tobytes(), limit))
            found = [(id, 1 - distance) for id, distance in (_typed(row, int, float) for row in rows)]
        return sorted(found, key=lambda each: (-each[1], each[0]))


def _typed(row: tuple[Any, ...], *types: type) -> tuple[Any, ...]:
    """A row with values of these types, which SQLite does not promise. Raises ValueError."""
    if [type(value) for value in row] != [*types]:
        raise ValueError(f"a row has {', '.join(type(value).__name__ for value in row)}, not "
                         f"{', '.join(each.__name__ for each in types)}")
    return row


def _libraries() -> tuple[Any, str]:
    """apsw, and the path of sqlite-vec's extension."""
    try:
        import apsw
        import sqlite_vec
    except ImportError as error:
        raise lacking(error) or EdgetuneError(f"{error.name}, which an index needs, is not installed",
                                              install_hint("retrieval")) from None
    return apsw, sqlite_vec.loadable_path()
