"""Documents are read as paragraphs with the places that a person would find them at."""

import json
from pathlib import Path

import pytest
from indexes import needs_retrieval, write_pdf

from edgetune.errors import DataError, UsageError
from edgetune.parts.documents.paragraphs import Paragraph, files_of, paragraphs

MARKDOWN = """\ufeffBefore.

# Care

Wash it
by hand.

## Cleaning ##
```
# no heading

still code
```
Dry
===
It drips.

# Guarantee
Two years.
"""
PLAIN = """ = The tower =

 Built in 1889 .

 = = Height = =

 It has 330 m .

Notes
-----
Open daily.

--------
"""


def read(tmp_path: Path, name: str, text: str) -> list[Paragraph]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return list(paragraphs(path))


def test_markdown(tmp_path):
    found = read(tmp_path, "a.md", MARKDOWN)
    assert found == [
        Paragraph("Before.", "", 0, 1), Paragraph("Wash it\nby hand.", "Care", 0, 5),
        Paragraph("```\n# no heading\n\nstill code\n```", "Care > Cleaning", 0, 9),
        Paragraph("It drips.", "Dry", 0, 16), Paragraph("Two years.", "Guarantee", 0, 19)]
    lines = MARKDOWN.splitlines()
    assert all(lines[each.line - 1].lstrip("\ufeff") == each.text.splitlines()[0] for each in found)


def test_plain_text_with_headings_of_a_wiki_and_of_restructured_text(tmp_path):
    assert read(tmp_path, "a.txt", PLAIN) == [
        Paragraph(" Built in 1889 .", "The tower", 0, 3), Paragraph(" It has 330 m .", "The tower > Height", 0, 7),
        Paragraph("Open daily.", "The tower > Notes", 0, 11)]


def test_rows(tmp_path):
    rows = [{"title": "Oven", "text": "It is hot."}, {"prompt": "Who?", "completion": "Me.", "n": 3},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}, {"n": 1}]
    found = read(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert found == [Paragraph("It is hot.", "Oven", 0, 1, 1), Paragraph("Who?\nMe.", "", 0, 2, 2),
                     Paragraph("Hi\nHello", "", 0, 3, 3)]


def test_pdf_says_the_page(tmp_path):
    needs_retrieval()
    path = write_pdf(tmp_path / "a.pdf", ["The lamp is red.", "", "It burns for 9 hours."])
    assert list(paragraphs(path)) == [Paragraph("The lamp is red.", "", 1, 0),
                                      Paragraph("It burns for 9 hours.", "", 3, 0)]


@pytest.mark.parametrize(("name", "content", "what"), [
    ("a.txt", b"\xff\xfe\x00", "no text in UTF-8: byte 0"), ("a.pdf", b"%PDF-1.4 no more", "cannot be read as PDF"),
    ("a.jsonl", b'{"text": "a"}\n{"text"\n', "line 2"),
])
def test_what_cannot_be_read_is_named(tmp_path, name, content, what):
    needs_retrieval()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"my-{name}.*{what}|{what}.*my-{name}"):
        list(paragraphs(tmp_path / name, f"my-{name}"))


def test_files_of_a_folder(tmp_path):
    """Hidden ones, links and other kinds are left out; a file is a folder of one."""
    for name in ("b.md", "deep/a.TXT", ".git/x.md", ".hidden.md", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "link.md").symlink_to("/etc/hostname")
    (tmp_path / "folder").symlink_to("/etc")
    assert [file.name for file in files_of(tmp_path)] == ["b.md", "deep/a.TXT"]
    assert [(file.name, file.size) for file in files_of(tmp_path / "b.md")] == [("b.md", 4)]
    with pytest.raises(UsageError, match=r"picture\.png is no document.*\.pdf"):
        files_of(tmp_path / "picture.png")
    with pytest.raises(UsageError, match="there is no folder"):
        files_of(tmp_path / "nowhere")


def test_a_line_as_long_as_a_page_is_no_heading(tmp_path):
    (tmp_path / "long.md").write_text("# Short\n\n# " + "# word " * 100 + "\n\ntext\n")
    assert [(each.heading, each.text[:8]) for each in paragraphs(tmp_path / "long.md")] == [
        ("Short", "# # word"), ("Short", "text")]
