"""Files of rows: what the csv and json modules write is read back; what is broken or without end is refused."""

import csv
import hashlib
import io
import json
import tracemalloc

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from json_lines import write_lines

from edgetune.data import files
from edgetune.data.files import read_rows
from edgetune.errors import DataError

ROWS = [{"question": "turn on", "answer": 'say "on", then\ngo; é\u2028'}, {"question": "", "answer": "\ta, b"}]
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)


def read(path):
    digest = hashlib.sha256()
    rows = list(read_rows(path, digest))
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest(), "the digest is of all bytes"
    return rows


def refused(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


# ---- CSV -------------------------------------------------------------------------------------------------------------


@examples(80)
@given(cells=st.lists(st.tuples(CELL, CELL), max_size=6), dialect=st.sampled_from(["excel", "unix", "excel-tab"]))
def test_what_the_csv_module_writes(tmp_path, cells, dialect):
    path = tmp_path / ("rows.tsv" if dialect == "excel-tab" else "rows.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, dialect)
        writer.writerow(["question", "answer"])
        writer.writerows(cells)
    with path.open(newline="", encoding="utf-8") as file:
        expected = [row for row in csv.DictReader(file, dialect=dialect) if any(row.values())]
    assert [row for _, row in read(path)] == expected


def test_lines_are_those_of_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes('question,answer\r\na,"b\r\nc"\r\n\r\nd,e\r\n,\r\n"f",g'.encode("utf-8-sig"))
    assert read(path) == [(2, {"question": "a", "answer": "b\r\nc"}), (5, {"question": "d", "answer": "e"}),
                          (7, {"question": "f", "answer": "g"})]
    path = tmp_path / "rows.csv"
    path.write_text("question;answer\na;b, c\n")
    assert read(path) == [(2, {"question": "a", "answer": "b, c"})]


@pytest.mark.parametrize(("content", "sentence"), [
    ("a,b\n1,2\n3,4,5\n", "line 3 of rows.csv has 3 cells, the header has 2; put cells that hold separators"),
    ("a,b\n1\n", "line 2 of rows.csv has 1 cells"),
    ("a,b,a\n", "the header of rows.csv names 'a' twice; give each column another name"),
    ('a,b\n1,2\n3,"4\n5,6\n', "line 3 of rows.csv is not CSV (unexpected end of data); put cells that hold ','"),
    ('a,b\n1,"2"3\n', "line 2 of rows.csv is not CSV ("),
    (b"a,b\n\xe9,2\n", "line 2 of rows.csv is not UTF-8; save the file as UTF-8"),
    ("a,b\n" + "x" * 200_000 + ",2\n", "line 2 of rows.csv is not CSV (field larger than field limit (131072))"),
])
def test_broken_tables(tmp_path, content, sentence):
    assert refused(tmp_path / "rows.csv", content).startswith(sentence)


@pytest.mark.parametrize("content", ["", "\n\n", "a,b\n", "a,b"])
def test_tables_without_rows(tmp_path, content):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    assert read(path) == []


# ---- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
def test_arrays_are_what_the_json_module_wrote(tmp_path, indent):
    path = tmp_path / "rows.json"
    text = json.dumps(ROWS, indent=indent, ensure_ascii=False)
    path.write_text("\ufeff\n " + text + " \n", encoding="utf-8")
    found = read(path)
    assert [row for _, row in found] == ROWS
    assert [line for line, _ in found] == ([2, 2] if indent is None else [3, 7])


def test_json_files_without_rows_and_of_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(" [ ] ")
    assert read(path) == []
    path = write_lines(tmp_path / "rows.json", ROWS)
    assert read(path) == [(1, ROWS[0]), (2, ROWS[1])]


@pytest.mark.parametrize(("content", "sentence"), [
    ('[{"a": 1},\n {"b": }]', """line 2 of rows.json is not JSON ('{"b": }]'); write an array of objects"""),
    ('[{"a": 1},\n 5]', "line 2 of rows.json is a JSON number, not an object; write an array of objects"),
    ('[{"a": 1}\n {"b": 2}]', """line 2 of rows.json is not JSON ('{"b": 2}]')"""),
    ('[{"a": 1},', "line 1 of rows.json is not JSON ('')"),
    ('[{"a": 1}', "line 1 of rows.json is not JSON ('')"),
    ('[{"a": 1},]', "line 1 of rows.json is not JSON (']')"),
    ('[{"a": 1}]\n[]', "line 1 of rows.json is not JSON"),
    ("[" * 100_000, "line 1 of rows.json is not JSON ('[[["),
    ('{\n  "data": []\n}', "line 1 of rows.json is not JSON ('{')"),
])
def test_broken_arrays(tmp_path, content, sentence):
    assert refused(tmp_path / "rows.json", content).startswith(sentence)


def test_what_the_json_module_refuses_is_refused(tmp_path):
    """Every array cut short or with one byte changed is read as the module reads it, or is a sentence."""
    path = tmp_path / "rows.json"
    whole = json.dumps(ROWS, indent=1)
    for place in range(whole.index("[") + 1, len(whole)):
        for text in (whole[:place], whole[:place] + "!" + whole[place + 1:]):
            path.write_text(text)
            try:
                expected = json.loads(text)
            except ValueError:
                assert "is not JSON" in refused(path, text)
            else:
                assert [row for _, row in read(path)] == expected


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_rows_nested_without_end_are_refused(tmp_path, name):
    """What is read here is written and read again, deeper in Python's stack."""
    def content(levels):
        row = '{"a": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"
        return row if name == "rows.jsonl" else f"[{row}]"

    path = tmp_path / name
    path.write_text(content(files.NESTED))
    assert len(read(path)) == 1
    assert refused(path, content(files.NESTED + 1)) == (
        f"line 1 of {name} is nested more than 100 levels deep; leave out what is not learned")
    path.write_text(json.dumps({"text": "[" * 999}) if name == "rows.jsonl" else json.dumps([{"text": "{" * 999}]))
    assert len(read(path)) == 1


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "start", "sentence"), [
    ("rows.json", b"[", "rows.json has 6 GiB, the limit is 64 MiB; write it as JSON Lines"),
    ("rows.csv", b"a,b\n", "line 2 of rows.csv has more than 64 MiB, the limit is 1 MiB; divide it"),
    ("rows.tsv", b"a\tb\n", "line 2 of rows.tsv has more than 64 MiB, the limit is 1 MiB; divide it"),
])
def test_huge_files_are_refused_without_being_read(tmp_path, name, start, sentence):
    path = tmp_path / name
    path.write_bytes(start)
    with path.open("r+b") as file:
        file.truncate(6 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            list(read_rows(path, hashlib.sha256()))
        assert tracemalloc.get_traced_memory()[1] < 3 * files.LINE_LIMIT
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(sentence)


def test_a_quote_that_is_never_closed_is_bounded(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w") as file:
        file.write('a,b\n1,"')
        file.writelines("x" * 99 + "\n" for _ in range(100_000))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"line 2 of rows\.csv is not CSV \(field larger than field limit"):
            list(read_rows(path, hashlib.sha256()))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_rows_are_read_as_they_are_needed(tmp_path):
    path = tmp_path / "rows.csv"
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("a", "b"), *((i, i) for i in range(10_000))])
    path.write_text(buffer.getvalue() + '"')
    rows = read_rows(path, hashlib.sha256())
    assert next(rows) == (2, {"a": "0", "b": "0"}), "the broken end is not known yet"


@pytest.mark.parametrize(("name", "written"), [
    ("rows.jsonl", lambda row: '{"text": "short"}\n' + json.dumps(row) + "\n"),
    ("rows.json", lambda row: json.dumps([{"text": "short"}, row], indent=0)),
])
def test_a_row_of_more_than_a_line_may_have_is_named_with_its_size(tmp_path, name, written):
    path = tmp_path / name
    path.write_text(written({"prompt": "q", "completion": "x" * 10_000_000}))
    with pytest.raises(DataError, match=r"line \d+ of \S+ has 9\.5 MiB, the limit is 1 MiB; divide it"):
        list(read_rows(path))
    path.write_text(written({"prompt": "q", "completion": "x" * 1_000_000}))
    assert len(list(read_rows(path))) == 2
