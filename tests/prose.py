"""What a person reads in the code: comments, docstrings and messages, each with its line."""

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
