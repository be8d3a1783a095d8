"""What user pages quote of what was measured is what docs/results says: docs/tools/figures.py looks each figure up."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "tools"))

import figures  # noqa: E402


def test_no_figure_stands_alone():
    wrong = [(page, figure, what) for page, figure, _, what in figures.looked_up() if what]
    assert wrong == [], "measured? name the row in docs/results/figures.toml"


@pytest.mark.parametrize(("text", "found"), [
    ("It takes 5 seconds, 0.7 to 6.3 % over, [20 of\n20](a.md#3-times), from 108M on, in `9 s`.",
     ["5 seconds", "0.7 to 6.3 %", "20 of 20", "108M"]),
    ("In ten minutes, a few minutes, a minute or two, 10:30, two to three times as fast, at a quarter of the memory.",
     ["ten minutes", "a few minutes", "a minute or two", "10:30", "two to three times", "a quarter"]),
    ("A loss of 0.1308 from 2.476 with Python 3.10 on a Zen 5, twice the speed, one row in ten, `--lr` (0.1).",
     ["0.1308", "2.476", "twice the speed", "one row in ten"]),
    ("```\n7 minutes\n```\n\n<!-- boards, written -->\n| 8 MiB |\n<!-- end -->\n", []),
    ("| rows | right | loss |\n| 60 | 34 of 60 | 0.3 |", ["34 of 60", "0.3"]),
    ("| rows | cores | GHz |\n| 60 | 14 | 0.939 |", []),
])
def test_figures_are_found(text, found):
    assert [figure for figure, _ in figures.stated("a.md", text, {"34 of 60"})] == found


def test_each_number_of_the_readme_is_a_figure():
    assert [figure for figure, _ in figures.stated("README.md", "400 rows for SmolLM2-135M.", set())] == ["400"]


ZEN_5 = "benchmarks.md: with `--memory 258M`"
SNIPS = "learning.md: | Snips | 200"


@pytest.mark.parametrize(("figure", "line", "source", "complaint"), [
    ("251 and 1,191 MiB", "251 and 1,191 MiB on a Zen 5", ZEN_5, ""),
    ("251 and 1,191 MiB", "251 and 1,191 MiB with AMX", ZEN_5, "the page says AMX, and not what the row says"),
    ("252 MiB", "", ZEN_5, "the row lacks [252.0]"),
    ("a fifth", "", {"row": ZEN_5, "is": "251 / 1191"}, ""),
    ("a third", "", {"row": ZEN_5, "is": "251 / 1191"}, "251 / 1191 is another figure"),
    ("30 of 100", "on 2026-11-28", SNIPS, "the page says 2026-11-28, and not what the row says"),
    ("one row in ten", "", "1 / edgetune.data.dataset:SHARE", ""),
    ("one row in five", "", "1 / edgetune.data.dataset:SHARE", "the code has 0.1"),
    ("64 MiB", "", "edgetune.data.files:ARRAY_LIMIT", ""),
    ("5 s", "", "benchmarks.md: of no row", "0 rows of docs/results/benchmarks.md have 'of no row'"),
    ("5 s", "", None, "stands alone"),
])
def test_a_source_is_refused_that_says_something_else(figure, line, source, complaint):
    assert figures.complaint(figure, line, source) == complaint


def test_facts_are_those_of_the_row_else_of_the_nearest_text():
    assert figures.facts(SNIPS) == {"machine": ["Zen 3"], "date": ["2026-11-27"], "seeds": ["one seed"],
                                    "command": ['`make lab NAME=recipes ARGS="--only snips --rows 200"`']}
    assert figures.facts("fleet.md: | svd | 58.7, 62.0, 58.7 %")["machine"] == ["Zen 5"]


def test_commands_of_results_exist():
    from lab.run import PROGRAMS
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    text = re.sub(r"\s+", " ", " ".join(path.read_text("utf-8") for path in figures.RESULTS.glob("*.md")))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    assert set(re.findall(r"`make lab NAME=([a-z\d-]+)", text)) <= set(PROGRAMS)
