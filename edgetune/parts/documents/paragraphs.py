"""Documents of a folder as paragraphs with their places: plain text, Markdown, PDF and JSON Lines.

What is read is data. Links are not followed, and hidden files are not read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...data.files import read_rows
from ...disk import MIB, read_small
from ...errors import DataError, EdgetuneError, UsageError, install_hint, lacking, named, size_text

TEXT_LIMIT = 64 * MIB  # bytes of a file of text
PDF_LIMIT = 256 * MIB
TITLES = ("title", "heading", "name")  # fields of a row that name it
TEXTS = ("text", "content", "body")  # fields of a row of which one holds all its text
LONGEST_HEADING = 400  # characters of a line; a longer one is text
_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*$")
_WIKI = re.compile(r"\s*((?:= ?){1,6})([^=].*?[^=\s])\s*((?:= ?){1,6})$")
_UNDERLINE = re.compile(r"(=|-|~|\^|\*|#)\1{2,}\s*$")
_FENCE = re.compile(r"\s*(```|~~~)")


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of a document. heading: the headings above it, such as "Care > Cleaning". page: from 1, and line: of
    the file, from 1; 0 where the format has none. record: no chunk joins paragraphs of two.
    """

    text: str
    heading: str = ""
    page: int = 0
    line: int = 0
    record: int = 0


@dataclass(frozen=True)
class DocumentFile:
    """A file of a folder. name: its path in the folder, with slashes. changed: its time of change, in nanoseconds."""

    path: Path
    name: str
    size: int
    changed: int


def files_of(folder: Path) -> list[DocumentFile]:
    """The files of a folder that can be read, by name; of a file, that file. Raises UsageError for what is neither."""
    if folder.is_file():
        require_name(folder.name)
        return [file_of(folder, folder.name)]
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", "name a folder of documents, or a document")
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place) / name
            if not name.startswith(".") and path.suffix.lower() in READERS and not path.is_symlink():
                with suppress(FileNotFoundError):  # removed in this moment
                    found.append(file_of(path, path.relative_to(folder).as_posix()))
    return sorted(found, key=lambda file: file.name)


def require_name(name: str) -> None:
    """Raises UsageError for a name of a kind that cannot be read."""
    if suffix_of(name) not in READERS:
        raise UsageError(f"{name} is no document that can be read", f"name a file that ends in {KINDS}")


def file_of(path: Path, name: str) -> DocumentFile:
    state = path.stat()
    return DocumentFile(path, name, state.st_size, state.st_mtime_ns)


def paragraphs(path: Path, name: str = "") -> Iterator[Paragraph]:
    """The paragraphs of a file, by the ending of its name. name: where it has another for people. Raises DataError for
    one that cannot be read, EdgetuneError where the library that reads it is missing.
    """
    try:
        yield from READERS[suffix_of(name or path.name)](path)
    except DataError as error:
        raise DataError(error.what.replace(path.name, name or path.name), error.hint) from None


def suffix_of(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


# ---- text ------------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return read_small(path, TEXT_LIMIT).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}", "divide it, or look at its rights") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is no text in UTF-8: byte {error.start}", "save it as UTF-8") from None


class _Headings:
    """The headings above a line, by their levels."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    def add(self, level: int, title: str) -> None:
        self._open = [each for each in self._open if each[0] < level] + [(level, " ".join(title.split()))]

    @property
    def path(self) -> str:
        return " > ".join(title for _, title in self._open)


def _markdown(path: Path) -> Iterator[Paragraph]:
    yield from _divided(_text(path).splitlines(), _markdown_heading, fences=True)


def _plain(path: Path) -> Iterator[Paragraph]:
    yield from _divided(_text(path).splitlines(), _plain_heading, fences=False)


Found = tuple[int, str, int]  # a heading's level, its text, and how many lines it takes


def _markdown_heading(lines: list[str], at: int, begins: bool) -> Found | None:
    if found := _HEADING.match(lines[at]):
        return len(found[1]), found[2], 1
    return _underlined(lines, at, "=-") if begins else None


def _plain_heading(lines: list[str], at: int, begins: bool) -> Found | None:
    """A heading as a wiki writes it, = so =, or underlined as in reStructuredText."""
    found = _WIKI.match(lines[at])
    if found and found[1].count("=") == found[3].count("="):
        return found[1].count("="), found[2], 1
    return _underlined(lines, at, "=-~^*#") if begins else None


def _underlined(lines: list[str], at: int, marks: str) -> Found | None:
    title = lines[at].rstrip()
    under = _UNDERLINE.match(lines[at + 1]) if at + 1 < len(lines) and title else None
    if not under or title[0].isspace() or under[1] not in marks or _UNDERLINE.match(title):
        return None
    return 1 + marks.index(under[1]), title, 2


def _divided(lines: list[str], heading_at: Callable[[list[str], int, bool], Found | None],
             fences: bool) -> Iterator[Paragraph]:
    """Paragraphs, which empty lines and headings end. heading_at: of the lines, a place, and whether a paragraph begins
    there. fences: code between ``` stays in one.
    """
    headings = _Headings()
    begin = at = 0
    fence = ""
    while at < len(lines):
        mark = _FENCE.match(lines[at]) if fences else None
        if mark and fence == mark[1]:
            fence = ""
            at += 1
            yield from _whole(lines, begin, at, headings)
            begin = at
            continue
        if mark:
            fence = fence or mark[1]
        is_text = fence or mark or len(lines[at]) > LONGEST_HEADING
        found = None if is_text else heading_at(lines, at, at == begin)
        if found or (not fence and not lines[at].strip()):
            yield from _whole(lines, begin, at, headings)
            begin = at = at + (found[2] if found else 1)
            if found:
                headings.add(found[0], found[1])
        else:
            at += 1
    yield from _whole(lines, begin, at, headings)


def _whole(lines: list[str], begin: int, end: int, headings: _Headings) -> Iterator[Paragraph]:
    text = "\n".join(lines[begin:end])
    if text.strip() and not _UNDERLINE.fullmatch(text):
        yield Paragraph(text.rstrip(), headings.path, 0, begin + 1)


# ---- PDF -------------------------------------------------------------------------------------------------------------


def _pdf(path: Path) -> Iterator[Paragraph]:
    """The paragraphs of each page. A scan has none: its pages are pictures."""
    pypdf = _library()
    if path.stat().st_size > PDF_LIMIT:
        raise DataError(f"{path.name} has {size_text(path.stat().st_size)}, the limit is {size_text(PDF_LIMIT)}",
                        "divide it")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it logs what it can mend
    try:
        pages = pypdf.PdfReader(path).pages
        for number in range(len(pages)):
            for text in re.split(r"\n\s*\n", pages[number].extract_text() or ""):
                if text.strip():
                    yield Paragraph(text.strip("\n"), "", number + 1, 0)
    except EdgetuneError:
        raise
    except Exception as error:  # its errors are many classes, also those of Python for a damaged file
        raise DataError(f"{path.name} cannot be read as PDF ({named(error)})", "save it again, without a password"
                        ) from None


def _library() -> Any:
    try:
        import pypdf
    except ImportError as error:
        raise lacking(error) or EdgetuneError("pypdf, which reads PDF files, is not installed",
                                              install_hint("retrieval")) from None
    return pypdf


# ---- JSON Lines ------------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[Paragraph]:
    """A paragraph a row: its text, or all texts of its fields."""
    for line, row in read_rows(path):
        if isinstance(row, str):
            yield Paragraph(row, "", 0, line, line)
            continue
        title = next((row[name] for name in TITLES if isinstance(row.get(name), str)), "")
        whole = next((row[name] for name in TEXTS if isinstance(row.get(name), str)), None)
        text = "\n".join(_texts_of({name: value for name, value in row.items() if value is not title})) \
            if whole is None else whole
        if text.strip():
            yield Paragraph(text, " ".join(title.split()), 0, line, line)


def _texts_of(value: Any) -> Iterator[str]:
    """The texts within a row, in its order; the roles of messages are left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if name != "role":
                yield from _texts_of(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts_of(part)


READERS: dict[str, Callable[[Path], Iterator[Paragraph]]] = {
    ".txt": _plain, ".rst": _plain, ".md": _markdown, ".markdown": _markdown, ".pdf": _pdf, ".jsonl": _json_lines}
KINDS = ", ".join(READERS)
