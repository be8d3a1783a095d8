"""Words that a person reads are those of the field: not in --help, on the page, in the docs, these idioms. Nor in the
docstrings, comments and messages of the rooms from data to training, which a contributor reads.
"""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgetune.cli import cli

ROOT = Path(__file__).parents[1]
IDIOMS = {
    r"\bso many\b": "N", r"\bg(?:ives?|iving) way\b": "yields", r"\bas (?:it|they) stands?\b": "current",
    r"\blies? (?:in|at|on|below)\b": "is stored in", r"\bof (?:its|their) own\b": "separate",
    r"\b(?:go|goes|going) on\b": "continues", r"\bgone through\b": "read", r"\bat work\b": "in progress",
    r"\bheal(?:s|ed|ing)\b": "distil", r"\brows? of kernels\b": "kernel set", r"\bworth a\b": "enough for",
}


def commands(group, path=()):
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def found(text):
    return [f"{match[0]!r}: {plain}" for idiom, plain in IDIOMS.items() for match in re.finditer(idiom, text, re.I)]


@pytest.mark.parametrize("path", [(), *commands(cli)], ids=" ".join)
def test_help(path):
    texts = [CliRunner().invoke(cli, [*path, flag], terminal_width=10_000).output for flag in ("--help", "--help-all")]
    text = " ".join(" ".join(texts).split())
    assert "Usage" in text
    assert found(text) == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_docs(page):
    assert found(" ".join(page.read_text("utf-8").split())) == []


def test_page():
    page, = ROOT.glob("edgetune/daemon/**/page.html")
    text = re.sub(r"^\s*(?://|\*|/\*).*$", "", page.read_text("utf-8"), flags=re.M)  # what a person does not see
    assert found(text) == []


MODULES = sorted((ROOT / "edgetune").rglob("*.py"))


def test_modules():
    for module in MODULES:
        text = " ".join(module.read_text("utf-8").split())
        assert found(re.sub(r"\bhealing\b", "", text, flags=re.I)) == [], module  # a key of manifests


def test_the_idioms_are_found():
    said = "So many rows; it gives way, goes on as it stands, and lies in a folder of its own."
    assert len(found(said)) == 6
