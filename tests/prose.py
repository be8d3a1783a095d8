"""What a person reads: comments, docstrings and messages of a module; and how long the sentences of a page are.

Code blocks, tables, headings, pictures and comments are no sentences. A paragraph ends a sentence, and so do an item of
a list, and a full stop, a question mark or an exclamation mark before a space, but for a few abbreviations. `code` is
one word, a link is its text, and a word has a letter or a digit.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from structure import tree

WORDS = re.compile(r"[A-Za-z]+ [a-z]+")  # a string that has them is a sentence, no name
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def prose(path: Path) -> str:
    """All of a module's comments and sentences, in the order of the file."""
    text = path.read_text("utf-8")
    strings = [node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)
               and isinstance(node.value, str) and WORDS.search(node.value)]
    comments = [token.string.lstrip("# ") for token in tokenize.generate_tokens(io.StringIO(text).readline)
                if token.type == tokenize.COMMENT]
    return " ".join(" ".join([*comments, *strings]).split())


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring of a module."""
    for node in ast.walk(tree(path)):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


# ---- sentences of pages ----------------------------------------------------------------------------------------------

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
