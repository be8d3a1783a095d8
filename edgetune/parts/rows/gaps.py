"""Questions by rules, without a model: gaps in sentences, cells of tables, and headings of a Markdown text.

Their answers stand in the text to the letter. Their wordings are not those of people, so rows by a good model are
better; a small model writes worse ones than these rules (docs/results/prompts.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

GAP = "___"
MOST_GAPS = 4  # of a chunk
MOST_WORDS = 40  # of a sentence with a gap, and of the answer to a heading
_SPAN = re.compile(r"`([^`\n]{2,60})`|\*\*([^*\n]{2,60})\*\*|"
                   r"(?<![\w.])(\d[\d.,:]*\d|\d)(?: ?(?:%|MiB|MB|GB|KiB)(?!\w))?")
_SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[A-Z`*\d])")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_CELL = re.compile(r"(?<!\\)\|")


def questions(text: str, heading: str) -> Iterator[tuple[str, str]]:
    """(question, answer) of a chunk, whose heading stands before each question. text: Markdown or plain text."""
    prose, tables = _divided(text)
    title = f"{heading}: " if heading else ""
    seen = 0
    first = " ".join(prose[0].split()) if prose else ""
    if heading and first and len(first.split()) <= MOST_WORDS:
        yield f"What do you know of this: {heading}?", first
    for paragraph in prose:
        for sentence in _SENTENCE.split(" ".join(paragraph.split())):
            span = _SPAN.search(sentence)
            if not span or len(sentence.split()) > MOST_WORDS or len(sentence.split()) < 4 or seen == MOST_GAPS:
                continue
            seen += 1
            yield f"{title}fill the gap: {sentence[:span.start()]}{GAP}{sentence[span.end():]}", _bare(span[0])
    for head, cells in tables:
        for name, cell in zip(head[1:], cells[1:], strict=False):
            if cell and cells[0]:
                yield f"{title}{head[0]} {cells[0]}: {name}?", cell


def _bare(span: str) -> str:
    return span.strip("`*")


def _divided(text: str) -> tuple[list[str], list[tuple[list[str], list[str]]]]:
    """(paragraphs, (header, cells) of each row of a table); programs between fences are left out."""
    prose: list[str] = []
    tables: list[tuple[list[str], list[str]]] = []
    head: list[str] | None = None
    taken: list[str] = []
    for line in [*re.sub(r"```.*?(?:```|$)", "", _LINK.sub(r"\1", text), flags=re.DOTALL).splitlines(), ""]:
        if line.lstrip().startswith("|"):
            cells = [_bare(cell.strip()) for cell in _CELL.split(line.strip().strip("|"))]
            if head is None:
                head = cells
            elif not re.fullmatch(r"[\s|:-]+", line):
                tables.append((head, cells))
            continue
        head = None
        is_item = line.lstrip().startswith(("- ", "* "))
        if (not line.strip() or is_item) and taken:
            prose.append("\n".join(taken))
            taken = []
        if line.strip():
            taken.append(line.lstrip("-* "))
    return prose, tables
