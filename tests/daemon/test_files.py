"""Uploads: what is accepted is there whole and for good, of all else nothing remains."""

import hashlib
import json

import pytest
from tiny import write_tiny

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.state.database import Store
from edgetune.daemon.state.files import Files, Rows
from edgetune.data.dataset import load_rows
from edgetune.data.question import digest
from edgetune.errors import DataError, NotFoundError, TooMuchError, UsageError
from edgetune.llamacpp.tokenizer import Tokenizer

CHAT = {"messages": [{"role": "user", "content": "lamp on"}, {"role": "assistant", "content": "é"}]}
PAIR = {"prompt": "lamp on", "completion": "on"}


def open_files(folder, **options):
    return Files(Store(folder), folder, DaemonConfig(**options))


def lines(*rows):
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def pieces(content, size):
    return [content[i:i + size] for i in range(0, len(content), size)]


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_a_file_is_kept_as_it_came(tmp_path, size):
    content = b"\xef\xbb\xbf" + lines(CHAT, CHAT) + b"\r\n  \n" + lines(CHAT).rstrip()
    file = open_files(tmp_path).add("../../x\0.jsonl", "fine-tune", pieces(content, size))
    assert (file.bytes, file.rows, file.name) == (len(content), 3, "../../x?.jsonl")
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    again = open_files(tmp_path)
    assert again.get(file.id) == file
    assert again.content(file.id).read_bytes() == content
    assert list(Rows(again.content(file.id))) == [CHAT] * 3
    assert [path.name for path in (tmp_path / "files").iterdir()] == [f"{file.id}.jsonl"]


@pytest.mark.parametrize("rows", [[PAIR, {"text": "a b"}], [{"text": "a b"}, PAIR, {"text": "c d"}],
                                  [{"text": "a b"}, CHAT]])
def test_text_goes_with_rows_of_any_shape_as_in_training(tmp_path, rows):
    model = write_tiny(tmp_path / "tiny.gguf")
    assert load_rows(rows, Tokenizer(model), max_length=64).rows == rows  # what training takes
    assert open_files(tmp_path).add("a", "fine-tune", [lines(*rows)]).rows == len(rows)


def test_what_training_reads_is_accepted(tmp_path):
    rows = [{"instruction": "a", "input": "b", "output": "c"}, {"question": "d", "answer": "e"}, PAIR]
    files = open_files(tmp_path)
    file = files.add("a", "fine-tune", [lines(*rows)])
    model = write_tiny(tmp_path / "tiny.gguf")
    assert list(Rows(files.content(file.id))) == load_rows(rows, Tokenizer(model), max_length=64).rows
    assert files.content(file.id).read_bytes() == lines(*rows)
    question = CHAT["messages"][0]
    calls = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    rows = [{"messages": [question, {"role": "assistant", "content": "", "weight": 0}, *CHAT["messages"]]},
            {"messages": [question, calls]}]
    assert open_files(tmp_path).add("a", "fine-tune", [lines(*rows)]).rows == 2


@pytest.mark.parametrize(("content", "match"), [
    (lines({"text": "a"}, PAIR, {"text": "b"}, CHAT), "line 4: a row of messages among rows of prompt; keep one shape"),
    (lines(PAIR) + b"{", r"line 2: it is not JSON \(b'\{'\)"),
    (b"\xff\n", "line 1: it is not UTF-8"),
    (b"[1]\n", "line 1: it is a JSON list, not an object"),
    (lines(PAIR, CHAT), "line 2: a row of messages among rows of prompt; keep one shape"),
    (lines({"question": "a", "answer": ""}), "line 1: the completion is empty"),
    (lines({"completion": "a"}), r"line 1: the row has an unknown shape \(its keys: completion\)"),
    (lines({"prompt": "a", "completion": 1}), "line 1: completion is a JSON number"),
    (lines({"text": None}), "line 1: text is a JSON null"), (b"\0" * 100, "line 1"),
    (lines({"messages": []}), "line 1: messages is empty"), (lines({"messages": "x"}), "line 1: messages"),
    (lines({"messages": [{"role": "assistant", "content": "a"}]}), "line 1: "),
    (lines({"messages": [{"role": "system", "content": "a"}]}), "line 1: no message is the assistant's"),
    (lines(PAIR, {"prompt": "a", "completion": " "}), "line 2: the completion is empty; write it, or remove the row"),
    (lines({"text": ""}), "line 1: the text is empty"),
    (lines({"messages": [CHAT["messages"][0], {"role": "assistant", "content": ""}]}),
     r"line 1: messages\[1\], an answer to learn, is empty; write the answer, or give it weight 0"),
    (lines({"messages": [*CHAT["messages"], CHAT["messages"][0], {"role": "assistant", "content": [
        {"type": "text", "text": "\n"}]}]}), r"line 1: messages\[3\], an answer to learn, is empty"),
    (b"[" * 100_000, "line 1: it is not JSON"),
    (b'{"text": ' + b"[" * 100_000 + b"\n", "line 1: it is not JSON"),
    (b"", "the file holds no rows"),
    (b" \n\n", "the file holds no rows"),
])
def test_of_a_file_that_is_refused_nothing_remains(tmp_path, content, match):
    files = open_files(tmp_path)
    with pytest.raises(DataError, match=match) as caught:
        files.add("a", "fine-tune", pieces(content, 1000))
    assert "\n" not in str(caught.value)
    assert list(files.folder.iterdir()) == []
    assert files.list() == []


@pytest.mark.parametrize(("name", "content"), [
    ("rows.csv", b'\xef\xbb\xbfprompt,completion\nlamp on,on\n"lamp\noff","say ""off"""\n'),
    ("Rows.CSV", b'prompt;completion\nlamp on;on\n"lamp\noff";"say ""off"""\n'),
    ("rows.tsv", b'prompt\tcompletion\nlamp on\ton\n"lamp\noff"\t"say ""off"""\n'),
    ("rows.json", b' [{"prompt": "lamp on", "completion": "on"},\n'
                  b'{"prompt": "lamp\\noff", "completion": "say \\"off\\""}]'),
])
def test_tables_and_arrays_are_kept_as_lines(tmp_path, name, content):
    files = open_files(tmp_path)
    file = files.add(name, "fine-tune", pieces(content, 16))
    kept = files.content(file.id).read_bytes()
    assert kept == lines(PAIR, {"prompt": "lamp\noff", "completion": 'say "off"'})
    assert (file.name, file.rows, file.bytes) == (name, 2, len(kept))
    assert file.sha256 == hashlib.sha256(kept).hexdigest()


@pytest.mark.parametrize(("name", "content", "match"), [
    ("a.csv", b"prompt,completion\nlamp,on\nlamp,\n", "line 3: the completion is empty"),
    ("a.csv", b"prompt,completion\nlamp\n", "line 2 of rows.csv has 1 cells, the header has 2"),
    ("a.csv", b"", "the file holds no rows"),
    ("a.json", b'[{"prompt": "a", "completion": 1}]', "line 1: completion is a JSON number"),
    ("a.json", b"[" + lines(PAIR), "array of objects"),
])
def test_a_table_that_is_refused_names_its_own_lines(tmp_path, name, content, match):
    files = open_files(tmp_path)
    with pytest.raises(DataError, match=match):
        files.add(name, "fine-tune", [content])
    assert list(files.folder.iterdir()) == []


def test_limits_of_tables_and_arrays(tmp_path):
    files = open_files(tmp_path, max_upload=9, max_body=1, max_rows=2)
    head = b"prompt,completion\n"
    for name, content, match in (("a.csv", head + b"lamp,on\n" * 3, "more than 2 rows"),
                                 ("a.csv", head + b"lamp," + b"o" * 1024, "line 2 has more than 1 KiB"),
                                 ("a.csv", head + b"\n" * 2**24, "more than 9 MiB"),
                                 ("a.json", b"[" + b" " * 2**23, "more than 8 MiB; .* one JSON object a line")):
        with pytest.raises(TooMuchError, match=match):
            files.add(name, "fine-tune", [content])
    assert files.add("a.json", "fine-tune", [lines(PAIR)]).bytes == len(lines(PAIR))  # JSON Lines, as they came
    assert len(list(files.folder.iterdir())) == 1


def test_limits_and_uploads_that_break_off_or_that_a_kill_left(tmp_path):
    files = open_files(tmp_path, max_upload=1, max_body=1, max_rows=2)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield b" " * 65535 + b"\n"

    def long_line():
        while True:
            taken.append(1)
            yield b" " * 100

    for chunks, match, most in ((endless(), "line 1 has more than 1 KiB", 1), (long_line(), "line 1 has more", 11),
                                (iter([lines(PAIR)] * 3), "more than 2 rows", 0),
                                (iter([b" " * 1000 + b"\n"] * 2**20), "more than 1 MiB", 0)):
        taken.clear()
        with pytest.raises(TooMuchError, match=match):
            files.add("a", "fine-tune", chunks)
        assert len(taken) <= most
    with pytest.raises(UsageError, match="purpose is 'batch'"):
        files.add("a", "batch", [lines(PAIR)])
    assert list(files.folder.iterdir()) == []
    def broken():
        yield lines(PAIR)
        raise EOFError("the client is gone")

    files = open_files(tmp_path)
    with pytest.raises(EOFError):
        files.add("a", "fine-tune", broken())
    assert list(files.folder.iterdir()) == []
    for name in ("file-1.jsonl", "file-2.jsonl.tmp"):
        (files.folder / name).write_text("x")
    assert list(open_files(tmp_path).folder.iterdir()) == []


def test_lists_and_deletion(tmp_path):
    files = open_files(tmp_path)
    added = [files.add(f"{i}", "fine-tune", [lines(PAIR)]) for i in range(5)]
    ids = [file.id for file in reversed(added)]
    assert [file.id for file in files.list()] == ids
    assert [file.id for file in files.list(limit=2, purpose="fine-tune")] == ids[:2]
    assert [file.id for file in files.list(after=ids[1], limit=2)] == ids[2:4]
    assert files.list(purpose="batch") == []
    files.delete(ids[0])
    assert [file.id for file in files.list()] == ids[1:]
    assert not (files.folder / f"{ids[0]}.jsonl").exists()
    for ask in (files.get, files.delete, files.content, lambda id: files.list(after=id)):
        with pytest.raises(NotFoundError):
            ask(ids[0])
    for id in ("../state.db", "file-%", "", "a" * 10**6):
        with pytest.raises(NotFoundError):
            files.content(id)
    assert digest({"a": 1, "b": "é"}) == digest(json.loads('{ "b": "\\u00e9", "a": 1}'))
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"text": "\ud800"})  # half a surrogate pair
