"""What user pages quote of what was measured is what docs/results says: docs/results/figures.toml names the rows."""

import re
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
FOR_USERS = ("tutorial", "how-to", "explanation", "experimental")
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for kind in FOR_USERS
                              for path in (ROOT / "docs" / kind).glob("*.md"))]
FIGURES = tomllib.loads((RESULTS / "figures.toml").read_text("utf-8"))
NOT_MEASURED = {figure for figures in FIGURES.pop("not-measured").values() for figure in figures}

NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNIT = r"(?:%|nats\b|tokens/s|times\b|(?:CPU )?seconds?\b|s\b|minutes?\b|min\b|hours?\b|[KMG]i?B\b|points\b)"
FIGURE = re.compile(rf"(?:{NUMBER} to )?{NUMBER} of {NUMBER}|(?:{NUMBER} (?:and|to) )?\+?{NUMBER} ?{UNIT}"
                    r"|\bp = 0\.\d+|\b\d+:\d\d\b")
NO_PROSE = re.compile(r"^```.*?^```|<!-- \w[^>]* -->.*?<!-- end -->|^ {4}.*?$|`[^`]*`|(?<=\])\([^)]*\)", re.M | re.S)


def quoted(text):
    """The figures of a page's sentences and tables: not of its code, nor of tables that the code writes."""
    return set(FIGURE.findall(re.sub(r"\s+", " ", NO_PROSE.sub("", text))))


def numbers(text):
    return {float(number.replace(",", "")) for number in re.findall(NUMBER, text)}


def row(place):
    """The only line of a page of results that has these words."""
    page, words = place.split(": ", 1)
    found = [line for line in (RESULTS / page).read_text("utf-8").splitlines() if words in line]
    assert len(found) == 1, f"{len(found)} lines of docs/results/{page} have {words!r}"
    return found[0]


@pytest.mark.parametrize("page", PAGES)
def test_each_figure_has_a_row(page):
    rows = FIGURES.get(page, {})
    found = quoted((ROOT / page).read_text("utf-8"))
    assert found - set(rows) - NOT_MEASURED == set(), "measured? name the row in docs/results/figures.toml"
    assert set(rows) - found == set(), "the page quotes these no longer"
    for figure, places in rows.items():
        lines = [row(place) for place in ([places] if isinstance(places, str) else places)]
        assert numbers(figure) <= numbers(" ".join(lines)), (figure, lines)


@pytest.mark.parametrize(("page", "heading"), [
    ("README.md", "## Results"), ("docs/how-to/prepare-rows.md", "## How many rows you need"),
    ("docs/how-to/preferences.md", "## What to expect"), ("docs/how-to/rewards.md", "## What to expect"),
    ("docs/explanation/anchors.md", "# Anchors"), ("docs/experimental/tutor.md", "## What to expect"),
    ("docs/how-to/learn-from-feedback.md", "## How many corrections it takes")])
def test_all_numbers_of_these_tables_are_in_the_results(page, heading):
    """Also those without a unit: the number of rows, of steps, a loss."""
    section = NO_PROSE.sub("", (ROOT / page).read_text("utf-8").split(f"{heading}\n")[1].split("\n## ")[0])
    measured = numbers(" ".join(path.read_text("utf-8") for path in RESULTS.glob("*.md")))
    assert numbers(section) <= measured


def test_nothing_is_listed_in_vain():
    assert set(FIGURES) <= set(PAGES)
    assert set().union(*(quoted((ROOT / page).read_text("utf-8")) for page in PAGES)) >= NOT_MEASURED


def test_figures_are_found():
    page = ("It takes 5 seconds, 0.7 to 6.3 % over, with `--memory 9 MiB` [20 of\n20](a.md#3-times).\n\n"
            "```\n7 minutes\n```\n\n<!-- boards, written -->\n| 8 MiB |\n<!-- end -->\n")
    assert quoted(page) == {"5 seconds", "0.7 to 6.3 %", "20 of 20"}
    assert numbers("1,055 and 2.0 MiB") == {1055, 2}
