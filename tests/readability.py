"""How long the sentences of a page are, by a simple rule.

Code blocks, tables, headings, pictures and comments are left out. A paragraph ends a sentence, and so do an item of a
list, and a full stop, a question mark or an exclamation mark before a space, but for a few abbreviations. `code` is
one word, a link is its text, and a word has a letter or a digit.

`python tests/readability.py` lists the pages, `python tests/readability.py PAGE` the sentences of a page that are long.
"""

import re
import sys
from pathlib import Path

LONG = 30  # words of a sentence; one that has more is long
_BLOCKS = re.compile(r"^```.*?^```|<!--.*?-->|!\[.*?\]\(.*?\)", re.M | re.S)
_LINES = re.compile(r"^(?: {4}(?![-*\d ])|\||#).*$", re.M)  # indented code, tables, headings
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|vs|et al|etc|cf)\. ")


def _flat(text: str) -> str:
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return _ABBREVIATION.sub(r"\1 ", re.sub(r"\s+", " ", re.sub(r"[*_]", "", text)))


def sentences(page: str) -> list[str]:
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", _LINES.sub("", _BLOCKS.sub("\n\n", page)))
    found = [sentence for block in blocks
             for sentence in re.split(r"(?<=[.!?])[)\"]? ", _flat(re.sub(r"^\s*(?:[-*>]|\d+\.) ", "", block)).strip())]
    return [sentence for sentence in found if words(sentence)]


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def lengths(page: str) -> list[int]:
    return [words(sentence) for sentence in sentences(page)]


def mean(counts: list[int]) -> float:
    return sum(counts) / max(len(counts), 1)


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    for name in sys.argv[1:]:
        for sentence in sentences(Path(name).read_text("utf-8")):
            if words(sentence) > LONG:
                print(words(sentence), sentence)
    for path in [] if sys.argv[1:] else [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        counts = lengths(path.read_text("utf-8"))
        print(f"{mean(counts):5.1f} {sum(count > LONG for count in counts):4} of {len(counts):4}  "
              f"{path.relative_to(root)}")
