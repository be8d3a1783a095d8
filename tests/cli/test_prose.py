"""Streamed text is wrapped between words, whatever its pieces are."""

import io

import pyte
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgetune.cli.prose import Prose
from edgetune.console import table

WORDS = st.lists(st.text("abcdefghij", min_size=1, max_size=30), min_size=1, max_size=60)


def printed(text, pieces, width):
    """What is printed of a text that came in these pieces."""
    file = io.StringIO()
    prose = Prose(Console(file=file, force_terminal=True, width=width))
    for start, end in zip([0, *pieces], [*pieces, len(text)], strict=True):
        prose.write(text[start:end])
    prose.end()
    return file.getvalue()


def shown(text, width):
    """What a terminal shows of it."""
    screen = pyte.Screen(width, 24)
    pyte.Stream(screen).feed(printed(text, [], width).replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display]


@examples(40)
@given(WORDS, st.integers(30, 90), st.data())
def test_words_stay_whole(words, width, data):
    text = " ".join(words)
    pieces = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    lines = printed(text, pieces, width).split("\n")
    assert [word for line in lines for word in line.split()] == words
    assert max(map(len, lines)) <= width


def test_lines_of_code_stay_as_they_are():
    code = "    for name in names: print(name)"
    lines = shown(f"so:\n```\n{code}\n```\nfor name in names: print(name)", 25)
    assert "".join(lines[2:4]) == code  # broken by the terminal alone
    assert lines[5:7] == ["for name in names:", "print(name)"]


@pytest.mark.parametrize("width", [20, 31])
def test_wide_letters_are_broken_at_the_width(width):
    text = "海は広くて深い。" * 8
    assert "".join(shown(text, width)).replace(" ", "") == text


def test_what_a_terminal_would_obey_is_left_out():
    assert shown("a\033[2Jb", 30)[0] == "a[2Jb"


@pytest.mark.parametrize("width", [60, 80])
def test_words_and_ids_in_tables_stay_whole(width):
    heads = ["run", "status", "held-out loss", "exact answers", "steps", "time", "peak memory"]
    row = ["lamps", "unmeasured", "6.603 → 3.436", "0% → 0%", "150", "0:02", "76 MiB"]
    numbers = tuple(range(2, 7))
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    console.print(table("", heads, [row], numbers, numbers, tight=width < 80))
    lines = file.getvalue().rstrip().split("\n")
    assert max(map(len, lines)) <= width
    assert all(cell in lines[-1] for cell in row)
    assert all(word in file.getvalue() for head in heads for word in head.split())
