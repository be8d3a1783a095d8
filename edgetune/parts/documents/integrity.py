"""Checks that a file is an index as we write it, before anything in it is used: indexes are copied between devices.

A SQLite file can hold a view or a computed column in place of a table, pages that refer to each other in a circle, and
values of any kind and size. So the schema has to be ours, its pages a tree, and no statement takes more steps than an
index of that size needs.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path
from typing import Any

from ...disk import open_regular
from ...errors import FormatError

APPLICATION = 0x45645478  # in the file's header: what wrote it
AGAIN = "make it again"
LONGEST_TEXT = 2 << 20  # bytes of a chunk's text
_LONGEST_VALUE = 16 << 20  # bytes; the vectors of 1,024 chunks are one value
_MOST_OBJECTS = 50  # tables and indexes, those of FTS5 and sqlite-vec with them
_PIECE = 10_000  # steps of SQLite's machine, after which its work is looked at
_LEAST_STEPS = 20_000_000  # of a statement, and one a byte of the file
_HEADER = 100  # bytes, of SQLite
_MAGIC = b"SQLite format 3\0"
_WIDTH = re.compile(r"\bint8\[([1-9]\d{0,4})\]")
_BESIDE = re.compile(r"(?:words|vectors)_\w+|sqlite_(?:sequence|autoindex_\w+)")  # what FTS5 and sqlite-vec make
_COMPUTED = re.compile(r"\b(?:as|check|collate|default|generated|references|where)\b")


def header_of(path: Path) -> tuple[int, int]:
    """(application, version) in the header of a SQLite file; zeros for another file. Raises FormatError for one that
    cannot be read.
    """
    try:
        with open_regular(path) as file:
            header = file.read(_HEADER)
    except OSError as error:
        raise FormatError(f"{path} is no index that can be read: {error.strerror}",
                          "name one that edgetune documents index made") from None
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        return 0, 0
    return int.from_bytes(header[68:72], "big"), int.from_bytes(header[60:64], "big")


class Steps:
    """Ends a statement that takes more steps than an index of `nbytes` bytes needs: see sqlite3_progress_handler."""

    def __init__(self, db: Any, nbytes: int) -> None:
        self._most = (_LEAST_STEPS + nbytes) // _PIECE
        self._left = self._most
        db.set_progress_handler(self._is_over, _PIECE)

    def begin(self) -> None:
        """Counts from zero again."""
        self._left = self._most

    def _is_over(self) -> bool:
        self._left -= 1
        return self._left < 0


def limit_values(db: Any, apsw: Any) -> None:
    """No value is larger than one of an index, and no expression of the file does more than compute."""
    db.limit(apsw.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
    db.execute("pragma trusted_schema = off; pragma cell_size_check = on; pragma mmap_size = 0").fetchall()


def check_schema(db: Any, path: Path, schema: str) -> None:
    """Raises FormatError unless the tables are those of `schema`, with any {width}, and each is sound."""
    rows = db.execute("select type, name, sql from sqlite_schema limit ?", (_MOST_OBJECTS,)).fetchall()
    own = {name: _plain(sql) for _, name, sql in rows if not _BESIDE.fullmatch(name)}
    width = _WIDTH.search(own.get("vectors", ""))
    wanted = {_plain(each) for each in schema.format(width=width[1] if width else 0).split(";")} - {""}
    if {*own.values()} != wanted:
        raise FormatError(f"{path} is an index with other tables than edgetune documents index makes", AGAIN)
    beside = [(kind, name, _plain(sql)) for kind, name, sql in rows if name not in own]
    if any(kind not in ("table", "index") or _COMPUTED.search(sql) or (sql and not sql.startswith("create table"))
           for kind, _, sql in beside):
        raise FormatError(f"{path} is an index whose words or vectors are no tables", AGAIN)
    for name in [name for name, sql in own.items() if sql.startswith("create table")] + [
            name for kind, name, _ in beside if kind == "table" and not name.startswith("sqlite_")]:
        if (found := db.execute(f'pragma quick_check("{name}")').fetchone()) != ("ok",):
            raise FormatError(f"{path} is damaged: {found}", AGAIN)


def content_digest(db: Any, but: str) -> str:
    """The SHA-256 of all values of an index, those of FTS5 and sqlite-vec too, but for the fact `but`."""
    digest = hashlib.sha256()
    tables = db.execute("select name from sqlite_schema where type = 'table' and sql not like 'create virtual%' "
                        "and name not like 'sqlite%' order by name").fetchall()
    for [table] in tables:
        for row in db.execute(f'select * from "{table}" order by 1'):
            for value in row if row[0] != but else ():
                found = value if isinstance(value, bytes) else repr(value).encode()
                digest.update(b"%d " % len(found) + found)
    return digest.hexdigest()


def unpacked(compressed: bytes) -> str:
    """The text of a chunk. Raises ValueError for what is none, or longer than one can be: it is not unpacked then."""
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(compressed, LONGEST_TEXT)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not unpacker.eof:
        raise ValueError("a text is cut or too long")
    return found.decode()


def _plain(sql: str | None) -> str:
    return " ".join((sql or "").lower().split())
