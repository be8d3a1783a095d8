"""Indexes as nobody should copy them onto a device: a table of attacks, and a process that opens them with limits."""

import json
import os
import resource
import signal
import sqlite3
import sys
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select i"
CHUNK = "update chunks set {} where id = 2"
FACT = "update facts set value = '{}' where name = '{}'"
PAGE = 4096
TEXTS = {f"{number}.md": f"# Lamp {number}\n\nThe lamp {number} in the hall is red.\n\nIt burns at six.\n" * 3
         for number in range(2)}
MEMORY = 300 << 20  # bytes beside those of the process that begins
SECONDS = 30  # of one core: an attack that is not over then never is


def schema_of(name: str, sql: str) -> str:
    """Another SQL text in the schema, which SQLite reads at the next opening."""
    quoted = sql.replace("'", "''")
    return f"pragma writable_schema = on; update sqlite_schema set sql = '{quoted}' where name = '{name}'"


def view(name: str, columns: str) -> str:
    return f"drop table {name}; create view {name} as {ENDLESS} as {columns} from n"


STATEMENTS = {
    # other things than tables, and other tables
    "endless chunks": view("chunks", "id, 1 as file, '' as heading, 1 as page, 1 as line, 1 as tokens, x'00' as text"),
    "endless files": view("files", "id, i as name, 1 as size, 1 as changed, 1 as sha256"),
    "endless facts": view("facts", "name, 1 as value"),
    "endless terms": view("terms", "term, 1 as doc, 1 as cnt"),
    "endless words": view("words", "rowid, 1 as heading, 1 as text"),
    "endless vectors": view("vectors", "rowid, 1 as vector, 1 as distance, 1 as k"),
    "endless parts of words": view("words_data", "id, x'00' as block"),
    "endless lengths": view("words_docsize", "id, x'00' as sz, 0 as origin"),
    "endless parts of vectors": view("vectors_chunks", "chunk_id, 1 as size, x'ff' as validity, x'00' as rowids"),
    **{f"no {name}": f"drop table {name}" for name in (
        "facts", "files", "chunks", "words", "terms", "vectors", "words_data", "words_idx", "words_docsize",
        "words_config", "vectors_chunks", "vectors_rowids", "vectors_vector_chunks00", "vectors_info")},
    "a table more": "create table more(a)",
    "a view more": f"create view more as {ENDLESS} from n",
    "a trigger": "create trigger t after insert on chunks begin delete from files; end",
    "an index of an expression": "create index x on chunks(hex(text))",
    "a column less": "drop index chunks_of_file; alter table chunks drop column tokens",
    "a column more": "alter table chunks add column more",
    "a column of another name": "alter table chunks rename column text to txt",
    "a computed column": "alter table chunks add column big generated always as (zeroblob(900000000))",
    "computed texts": schema_of("chunks", "CREATE TABLE chunks(id integer primary key, file integer, heading text, "
                                "page integer, line integer, tokens integer, text as (zeroblob(900000000)))"),
    "computed parts": schema_of("words_data", "CREATE TABLE words_data(id INTEGER PRIMARY KEY, "
                                "block as (zeroblob(900000000)))"),
    "words as a table": "drop table words; create table words(heading, text)",
    "vectors as a table": "drop table vectors; create table vectors(vector, distance, k)",
    "no SQL": schema_of("chunks", "no SQL"),
    "another module": schema_of("terms", "CREATE VIRTUAL TABLE terms using fts5(text)"),
    "a page of another table": "pragma writable_schema = on; update sqlite_schema set rootpage = "
                               "(select rootpage from sqlite_schema where name = 'files') where name = 'chunks'",
    "a page that is not there": "pragma writable_schema = on; update sqlite_schema set rootpage = 99999 "
                                "where name = 'chunks'",
    # values
    "no fact": "delete from facts",
    **{f"no fact {name}": f"delete from facts where name = '{name}'"
       for name in ("encoder", "encoder_sha256", "least_evidence", "chunk_tokens", "chunks")},
    **{f"the encoder is {what}": FACT.format(value, "encoder")
       for what, value in {"a list": "[1]", "no JSON": "{", "deep": "[" * 100_000, "many digits": "9" * 10_000,
                           "a device": '"/dev/zero"', "a folder": '"/"', "a name": '"\\u0000\\ud800"'}.items()},
    **{f"{name} is {value}": FACT.format(value, name)
       for name in ("encoder_sha256", "least_evidence", "chunks") for value in ("[1]", "null", "NaN", '"x"', "1e999")},
    "a fact of bytes": "update facts set value = x'ff'",
    "a large fact": "update facts set value = zeroblob(50000000) where name = 'encoder'",
    "a file without a name": "update files set name = x'ff' where id = 1",
    "a file with a number": "update files set name = id, sha256 = 5.5, changed = 'now'",
    "no file": "delete from files",
    "other numbers of files": "update files set id = id + 900",
    "no chunk": "delete from chunks",
    "nothing at all": "delete from chunks; delete from words; delete from vectors",
    "a chunk less": "delete from chunks where id = 2",
    "other numbers of chunks": "update chunks set id = id + 1000000",
    "a negative chunk": CHUNK.format("id = -7"),
    "a chunk of no file": CHUNK.format("file = 99"),
    "a text of letters": CHUNK.format("text = 'letters'"),
    "a text that is not packed": CHUNK.format("text = x'0102030405'"),
    "a text that is cut": CHUNK.format("text = substr(text, 1, 12)"),
    "an empty text": CHUNK.format("text = x''"),
    "a heading of bytes": CHUNK.format("heading = x'ff00'"),
    "a page of letters": CHUNK.format("page = 'one'"),
    "a line that is no whole number": CHUNK.format("line = 1.5"),
    "tokens of letters": CHUNK.format("tokens = 'many'"),
    "no words": "delete from words",
    "words of other chunks": "insert into words(rowid, heading, text) values(5000, 'lamp', 'lamp red hall')",
    "other settings of words": "update words_config set v = 99",
    "no parts of words": "delete from words_data",
    "cut parts of words": "update words_data set block = substr(block, 1, length(block) / 2)",
    "zeros as words": "update words_data set block = zeroblob(length(block))",
    "no lengths": "delete from words_docsize",
    "other lengths": "update words_docsize set sz = x'ffffffffffffffffff'",
    "no vectors": "delete from vectors",
    "a vector more": "insert into vectors(rowid, vector) values(5000, vec_int8(zeroblob(64)))",
    "vectors of zeros": "update vectors_vector_chunks00 set vectors = zeroblob(length(vectors))",
    "short vectors": "update vectors_vector_chunks00 set vectors = substr(vectors, 1, 100)",
    "long vectors": "update vectors_vector_chunks00 set vectors = zeroblob(99000000)",
    "no places of vectors": "update vectors_chunks set rowids = x'', validity = x''",
    "short places of vectors": "update vectors_chunks set rowids = substr(rowids, 1, 9)",
    "vectors of other chunks": "update vectors_chunks set rowids = zeroblob(length(rowids)), "
                               "validity = replace(hex(zeroblob(64)), '00', 'f')",
    "a large size": "update vectors_chunks set size = 9223372036854775807",
    "vectors elsewhere": "update vectors_rowids set chunk_offset = 1099511627776, chunk_id = -1",
    "vectors without a version": "delete from vectors_info",
}


def bomb(path: Path) -> None:
    """A text of a million bytes that unpacks to a thousand million. Blocks after a full flush may be repeated."""
    packer = zlib.compressobj(9)
    first, second = (packer.compress(b" " * 10**6) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    change(path, CHUNK.format("text = ?"), (first + second * 999,))


def no_text(path: Path) -> None:
    change(path, CHUNK.format("text = ?"), (zlib.compress(b"\xff\xfe"),))


def circle(path: Path) -> None:
    """Each child of the first page of the chunks is that page again."""
    with closing(sqlite3.connect(path)) as db:
        [(number,)] = db.execute("select rootpage from sqlite_schema where name = 'chunks'").fetchall()
    cell = number.to_bytes(4, "big") + b"\x01"
    count = 100
    begin = PAGE - len(cell) * count
    places = b"".join((begin + len(cell) * i).to_bytes(2, "big") for i in range(count))
    head = b"\x05" + bytes(2) + count.to_bytes(2, "big") + begin.to_bytes(2, "big") + b"\0" + number.to_bytes(4, "big")
    page = head + places
    write(path, (number - 1) * PAGE, page + bytes(begin - len(page)) + cell * count)


def write(path: Path, place: int, what: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(what)


def special(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


FILES: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda _: None,
    "a text that unpacks to 1 GB": bomb,
    "a text that is none": no_text,
    "pages in a circle": circle,
    **{f"only {size} bytes": lambda path, size=size: os.truncate(path, size)
       for size in (0, 50, 99, 100, 4096, 30_000)},
    "a page less": lambda path: os.truncate(path, path.stat().st_size - PAGE),
    "a byte less": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a hole of 1 GB": lambda path: os.truncate(path, path.stat().st_size + 10**9),
    "a page too many": lambda path: write(path, path.stat().st_size, b"\x0d" * PAGE),
    "another size of pages": lambda path: write(path, 16, b"\x02\x00"),
    "a journal elsewhere": lambda path: write(path, 18, b"\x02\x02"),
    "texts in UTF-16": lambda path: write(path, 56, b"\0\0\0\x02"),
    "another application": lambda path: write(path, 68, b"abcd"),
    "another version": lambda path: write(path, 60, b"\0\0\0\x09"),
    "another format of the schema": lambda path: write(path, 44, b"\0\0\0\x09"),
    "a list of free pages": lambda path: write(path, 32, b"\0\0\0\x02\0\0\0\x09"),
    "a schema of ones": lambda path: write(path, 100, b"\xff" * 3000),
    "no file, a pipe": special,
    "no file, a device": linked,
    "no file, a folder": lambda path: (path.unlink(), path.mkdir()),
}
ATTACKS = [*STATEMENTS, *FILES]


def change(path: Path, sql: str, values: tuple[Any, ...] = ()) -> None:
    import apsw
    import sqlite_vec
    db = apsw.Connection(str(path))
    db.enable_load_extension(True)
    db.load_extension(sqlite_vec.loadable_path())
    db.execute(sql, values or None).fetchall()
    db.close()


def tampered(path: Path, attack: str) -> None:
    """Does it to an index."""
    if attack in FILES:
        FILES[attack](path)
    else:
        change(path, STATEMENTS[attack])


def opened(path: Path, documents: Path, encoding: Any, own: bool) -> dict[str, Any]:
    """What a search, an indexing over it, and a search after that say. own: the first one with the index's encoder."""
    from edgetune.errors import EdgetuneError
    from edgetune.parts.documents.building import build
    from edgetune.parts.documents.options import IndexOptions
    from edgetune.parts.documents.passages import quoted
    from edgetune.parts.documents.search import Index

    def said(call: Callable[[], object]) -> object:
        try:
            return call()
        except EdgetuneError as error:
            return {"error": type(error).__name__, "what": str(error)}

    def search(encoding: Any) -> str:
        with Index(path, 1, encoding) as index:
            found = [index.search(query, 50, least=0.0) for query in ("the red lamp", "it burns at six")]
        assert all(0 <= passage.score <= 1 for each in found for passage in each.passages)
        json.dumps([each.to_json() for each in found], allow_nan=False)
        return "".join(quoted(each.passages) for each in found)

    return {"search": said(lambda: search(None if own else encoding)),
            "index": said(lambda: build(documents, path, encoding, IndexOptions(chunk_tokens=90)).to_json()),
            "search after it": said(lambda: search(encoding))}


def limited(nbytes: int) -> None:
    [size, *_] = Path("/proc/self/statm").read_text().split()
    limit = int(size) * os.sysconf("SC_PAGE_SIZE") + nbytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(8 * SECONDS)  # for one that waits


def main(folder: Path) -> None:
    """Makes an index in a folder. For each attack a process opens a copy, tampered, and writes what it found."""
    import traceback

    from indexes import small_index

    from edgetune.parts.documents import passages, search  # here, so that no process has to
    from edgetune.parts.documents.search import Encoding
    assert passages
    search.QUERIES = 2  # for the limit, which is not tested here
    whole = small_index(folder, TEXTS).read_bytes()
    encoding = Encoding(folder / "encoder.gguf", 1)
    for number, attack in enumerate(ATTACKS):
        path = folder / f"{number}.index"
        path.write_bytes(whole)
        tampered(path, attack)
        if os.fork() == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            limited(MEMORY)
            try:
                found = opened(path, folder / "documents", encoding, "encoder" in attack)
            except BaseException:
                found = {"traceback": traceback.format_exc()}
            (folder / f"{number}.json").write_text(json.dumps(found))
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
