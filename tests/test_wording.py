"""Words that a person reads are those of the field. IDIOMS stand nowhere: in no --help, page or code. DIALECT stands in
no page, comment, docstring or message, and the first sentence of a docstring has a subject.
"""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import all_commands
from prose import docstrings, prose

from edgetune.cli import cli

ROOT = Path(__file__).parents[1]
IDIOMS = {
    r"\bso many\b": "N", r"\bg(?:ives?|iving) way\b": "yields", r"\bas (?:it|they) stands?\b": "current",
    r"\blies? (?:in|at|on|below)\b": "is stored in", r"\bof (?:its|their) own\b": "separate",
    r"\b(?:go|goes|going) on\b": "continues", r"\bgone through\b": "read", r"\bat work\b": "in progress",
    r"\bheal(?:s|ed|ing)\b": "distil", r"\brows? of kernels\b": "kernel set", r"\bworth a\b": "enough for",
}

DIALECT = {
    r"\bjudge[sd]\b|\bjudging\b": "is held out, evaluates", r"\btold again\b|\bretold\b": "with substituted values",
    r"\banew\b": "again, from scratch", r"\bbeside\b": "with, compared with", r"\belsewhere\b": "on unrelated text",
    r"\bwhat serves\b|\b(?:in|into|of) service\b": "the active adapter", r"\blessons?\b": "feedback job",
    r"\ba life\b|\blife of\b": "simulation of N rounds", r"\bearn(?:s|ed)?\b": "scores",
    r"\bas asked\b|\b(?:is|are|be) asked (?:for|of)\b": "required", r"\bbehind\b": "after",
    r"\bby heart\b": "memorised", r"\b(?:is|are) no numbers?\b": "is NaN or infinite",
    r"\bwhatever it is\b|\bwhat \w+ is what\b": "a sentence with a subject",
}
# Patterns of sentences: their subject comes first, "only" stands before its word, and a condition begins with "if".
PATTERNS = {
    r"\bOf (?!course)[a-z`*]": "begin with the subject",
    r"(?<!leaves it )\balone\b": "only, by itself",
    r"(?:^|(?<=[.;:] )|(?<=\*\*)|(?<=^- )|(?<=\| ))Where [^.?|]*?,(?![^.|]*\?)": "if",
}
# First words of a docstring whose first sentence has no subject or no verb.
WITHOUT_SUBJECT = re.compile(
    r"(?:Of|With|Without|Those|As|In|By|How|From|For|At|On|Where|Also|Beside|Behind|Under|Until)\b")
LEFT = {"daemon": 2, "data": 2}  # of DIALECT: an event's name, a table's name, and prompts that a run's bytes depend on


def found(text, idioms=IDIOMS):
    return [f"{match[0]!r}: {plain}" for idiom, plain in idioms.items() for match in re.finditer(idiom, text, re.I)]


@pytest.mark.dev
@pytest.mark.parametrize("path", [(), *all_commands()], ids=" ".join)
def test_help(path):
    texts = [CliRunner().invoke(cli, [*path, flag], terminal_width=10_000).output for flag in ("--help", "--help-all")]
    text = " ".join(" ".join(texts).split())
    assert "Usage" in text
    assert found(text) == []
    assert case_of(text) == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def case_of(text):
    """What PATTERNS find in a text, each with its plain form; an upper-case letter begins a sentence."""
    return [f"{match[0]!r}: {plain}" for pattern, plain in PATTERNS.items() for match in re.finditer(pattern, text)]


def by_hand(page):
    """The text of a page that no program wrote, without code."""
    text = page.read_text("utf-8")
    if "docs/tools/generate.py; `make docs`" in text:
        return ""
    if page.parent.name == "results":
        text = re.sub(r"^\|.*$", "", text, flags=re.M)  # names of what was measured, such as "encoder alone"
    text = re.sub(r"```.*?```|<!-- [^>]*, written by .*?<!-- end -->|`[^`\n]*`", "", text, flags=re.S)
    return " ".join(text.split())


@pytest.mark.dev
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_docs(page):
    assert found(" ".join(page.read_text("utf-8").split()), IDIOMS | DIALECT) == []
    assert case_of(by_hand(page)) == []


@pytest.mark.dev
def test_page_and_modules():
    page, = ROOT.glob("edgetune/daemon/**/page.html")
    text = re.sub(r"^\s*(?://|\*|/\*).*$", "", page.read_text("utf-8"), flags=re.M)  # what a person does not see
    assert found(text) == []
    for module in MODULES:
        text = " ".join(module.read_text("utf-8").split())
        assert found(re.sub(r"\bhealing\b", "", text, flags=re.I)) == [], module  # a key of manifests


MODULES = sorted((ROOT / "edgetune").rglob("*.py"))


def room_of(module):
    return module.relative_to(ROOT / "edgetune").parts[0].removesuffix(".py")


@pytest.mark.dev
@pytest.mark.parametrize("room", sorted({room_of(module) for module in MODULES}))
def test_the_dialect_is_in_no_room(room):
    modules = [module for module in MODULES if room_of(module) == room]
    assert [f"{module}:{line}: {text.splitlines()[0]}" for module in modules for line, text in docstrings(module)
            if WITHOUT_SUBJECT.match(text)] == []
    idioms = [f"{module}: {what}" for module in modules for what in found(prose(module), DIALECT)]
    assert len(idioms) <= LEFT.get(room, 0), "\n".join(idioms)


def test_the_idioms_are_found():
    said = "So many rows; it gives way, goes on as it stands, and lies in a folder of its own."
    assert len(found(said)) == 6
    said = "Lessons are judged anew beside what serves, as is asked of those behind it."
    assert len(found(said, DIALECT)) == 7
    said = "Of two answers the one that alone is right wins. Where none is, nobody wins. Where is it, in which folder?"
    assert [plain.partition(": ")[2] for plain in case_of(said)] == ["begin with the subject", "only, by itself", "if"]
    assert case_of("What was learned of it. A place where it is kept. It leaves it alone.") == []
    assert WITHOUT_SUBJECT.match("Of a room.")
    assert not WITHOUT_SUBJECT.match("Offers a room.")
