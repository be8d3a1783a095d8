"""Looks each figure of the README and the guides up in docs/results: `python docs/tools/figures.py` lists all of them.

docs/results/figures.toml names the row, or the constant of the code, that each figure comes from. A figure without
either stands alone: it is named at the end, and tests/test_figures.py fails. No figures are what a page has as code: an
option's value, an example's content, a default in brackets after its option; nor numbers of names, as in Python 3.10.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
GUIDES = ("tutorial", "how-to", "explanation", "experimental")
EVERY_NUMBER = "README.md"
"""The page of which each number is a figure, also one without a unit."""
PAGES = [EVERY_NUMBER, *sorted(str(path.relative_to(ROOT)) for kind in GUIDES
                               for path in (ROOT / "docs" / kind).glob("*.md"))]

COUNTED = {word: value for value, word in enumerate(
    ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"), start=1)} | {
    "twenty": 20, "thirty": 30, "forty": 40, "sixty": 60, "ninety": 90}
ONE = {"a": 1, "an": 1}
PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
SCALES = {"%": 0.01, "ms": 0.001, "minute": 60, "min": 60, "hour": 3600, "day": 86400,
          **{f"{letter}{'i' * binary}B": (1024 if binary else 1000) ** power
             for power, letter in enumerate("KMG", 1) for binary in (False, True)}}
A_FEW = range(2, 10)
ROUNDED = 0.1  # a figure in words says its value within this share

DIGITS = r"(?<![\w.,/-])\+?\d[\d,]*(?:\.\d+)?(?:e-\d+)?(?!\w|\.\d)"
COUNT = rf"\b(?:{'|'.join(COUNTED)})\b"
AMOUNT = rf"(?:{DIGITS}|\b(?:{'|'.join([*COUNTED, *ONE])}|a few)\b)"
UNIT = (r"(?:%|(?:(?:tokens|rows)/s|nats|times|(?:CPU )?(?:second|minute|hour|day)s?|min|m?s|[KMG]i?B|points)\b)")
PART = rf"(?:{'|'.join(PARTS)})s?\b"
FIGURE = re.compile(
    rf"(?:{DIGITS} (?:and|to) )?{DIGITS} of (?:the )?{DIGITS}"
    rf"|(?:{AMOUNT} (?:and|to|or) )?(?!(?:a|one) (?:second|day)\b){AMOUNT} ?{UNIT}(?: or two\b)?"
    rf"|\b(?:{'|'.join([*COUNTED, *ONE])}) {PART}|\bhalf (?:of |the |its )+\w+|\btwice (?:as|the|its|that)\b(?: \w+)?"
    rf"|{COUNT}(?: \w+)? in {COUNT}|\bp = 0\.\d+|\b\d+:\d\d\b|(?<![\w.-])\d+(?:\.\d+)?[KMG]\b"
    r"|(?<![\w.,/-])\d+\.\d+(?!\w|\.\d)", re.I)

BARE = re.compile(r"[\d.]+[KMG]?")

CODE = re.compile(r"^```.*?^```|<!-- \w[^>]* -->.*?<!-- end -->|^ {4}\S.*?$|<[^>]*>|(?<=\])\([^)]*\)"
                  r"|^\s*\d+\. |^#+ \d+\. |^:?-+:?$", re.M | re.S)
SPAN = re.compile(r"`[^`]*`(?: \([^ )]*\))?")
"""Code, with an option's default in brackets."""
NAMED = re.compile(rf"\b(?:[A-Z][\w.+]*|arXiv|et al\.|step|status) \d[\d.]*"
                   rf"(?!\.?\d|,\d| ?{UNIT}| (?:and|to) \d+ ?{UNIT})"
                   r"|\b20\d\d\.\d+\b")
"""A number that belongs to a name: Python 3.10, Zen 5, a step of the page."""

CONSTANT = re.compile(r"\b(edgetune[\w.]*):([A-Z][\w.]*)")

FACTS = {
    "machine": re.compile(r"Zen [345]\b|AMX|Xeon|qemu|[Ss]imulat\w+|emulation"),
    "date": re.compile(r"20\d\d-\d\d-\d\d"),
    "command": re.compile(r"`(?:make|edgetune|pytest|ARGS|tests/)[^`]*`|script of its day"
                          r"|\]\(\.\./(?:tutorial|how-to)[^)]*\)"),
    "seeds": re.compile(r"(?:\bseeds? [\d,]+(?:(?: and| to) \d+)?|(?:\w+ )?seeds?\b|draws? of rows"
                        r"|[\d,]+ (?:simulated )?(?:runs|jobs)\b)"),
}
COSTS = re.compile(r"(?:second|minute|hour|day)s?\b|\b[KMG]i?B\b|\d[KMG]\b|\d:\d\d|tokens/s|\d s$")
NOT_LEARNED = {"benchmarks.md", "kernels.md", "walks.md"}
"""Pages of speed, memory and durability, whose rows need no seed, as no time or size does."""


def numbers(text: str) -> set[float]:
    return {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-\d+)?", text)}


def blocks(text: str) -> Iterator[list[str]]:
    """The paragraphs of a page, each in one line, and the tables, as their lines."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip().splitlines()
        yield [line for line in lines if line.startswith("|")] or [" ".join(" ".join(lines).split())]


def stated(page: str, text: str, measured: set[str]) -> Iterator[tuple[str, str]]:
    """(figure, the paragraph or row that states it) of a page's prose.

    In a table with a measured figure all numbers are figures, but those of the first column, which says what was
    measured; in another table only those with a unit."""
    for block in blocks(NAMED.sub("", SPAN.sub("§", CODE.sub("", text)))):
        table = len(block) > 1
        found = [[figure[:1].lower() + figure[1:] for figure in FIGURE.findall(line)] for line in block]
        values = [line.split("|", 2)[-1] if table and page != EVERY_NUMBER else line for line in block]
        plain = page == EVERY_NUMBER or (table and any(
            not measured.isdisjoint([*figures, *re.findall(DIGITS, value)])
            for figures, value in zip(found, values, strict=True)))
        for line, figures, value in zip(block, found, values, strict=True):
            yield from ((figure, line) for figure in figures if plain or not table or not BARE.fullmatch(figure))
            if plain:
                yield from ((number, line) for number in re.findall(DIGITS, FIGURE.sub("", value)))


def said(figure: str) -> tuple[list[float], float]:
    """The amounts that a figure says, and the number of seconds, bytes or ones in its unit."""
    words = re.findall(r"[A-Za-z]+|%|[\d.,:e+-]+", figure)
    unit = next((word for word in reversed(words) if word.removesuffix("s") in SCALES or word in SCALES), "")
    scale = SCALES.get(unit, SCALES.get(unit.removesuffix("s"), 1))
    part = next((PARTS[word.removesuffix("s").lower()] for word in words if word.removesuffix("s").lower() in PARTS), 0)
    counts = [COUNTED[word.lower()] for word in words if word.lower() in COUNTED]
    if part:
        return [(counts[0] if counts else 1) / part], 1
    if " in " in figure:
        return [counts[0] / counts[1]], 1
    if words[0].lower() == "twice":
        return [2], 1
    return [*numbers(figure), *counts, *(1 for word in words if word.lower() in ONE and "few" not in words)], scale


def says(figure: str, value: float) -> bool:
    """Whether a figure says this value: in words about, else rounded to its last digit."""
    amounts, scale = said(figure)
    if figure.endswith("or two"):
        return scale <= value <= 2 * scale
    digits = re.search(r"\d\.(\d+)", figure)
    for amount in amounts:
        near = 0.5 * 10.0 ** -len(digits[1] if digits else "") if re.search(r"\d", figure) else ROUNDED * amount
        if any(abs(one - amount) <= near + 1e-9 for one in (value, value / scale)):
            return True
    return False


def computed(expression: str) -> float:
    """The value of an expression, whose names are those of the package: `1 / edgetune.data.dataset:SHARE`."""
    values: dict[str, Any] = {"len": len}

    def name_of(found: re.Match[str]) -> str:
        name = f"value{len(values)}"
        values[name] = attrgetter(found[2])(importlib.import_module(found[1]))
        return name

    return float(eval(CONSTANT.sub(name_of, expression), values))


def file_of(place: str) -> Path:
    """A page of results by its name, another file by its path."""
    name = place.split(": ")[0]
    return ROOT / name if "/" in name else RESULTS / name


def is_code(source: Any) -> bool:
    return isinstance(source, str) and bool(CONSTANT.search(source))


def row(place: str) -> tuple[str, list[str]]:
    """(the only paragraph or row of a page of results that has these words, the text around it, the nearest first)

    Raises ValueError if there is not exactly one."""
    words = place.split(": ", 1)[1]
    sections: dict[int, list[str]] = {0: []}  # by the level of their headings
    found = []
    for block in blocks(file_of(place).read_text("utf-8")):
        if heading := re.match(r"#+ ", block[0]):
            sections = {level: texts for level, texts in sections.items() if level < len(heading[0])}
            sections[len(heading[0])] = []
        *_, own = sections.values()
        found += ((line, len(own), list(sections.values())) for line in block if words in line)
        own.append(block[0])
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows of {file_of(place).relative_to(ROOT)} have {words!r}")
    line, before, (*above, own) = found[0]
    around = [own[before], *reversed(own[:before]), *own[before + 1:]]
    return line, around + [text for texts in reversed(above) for text in texts]


def facts(place: str) -> dict[str, list[str]]:
    """The machine, date, command and seeds of a row: its own, else those of the nearest text around it."""
    line, around = row(place)
    return {name: next(filter(None, (pattern.findall(text) for text in (line, *around))), [])
            for name, pattern in FACTS.items()}


def rows_of(source: Any) -> list[str]:
    """The places that a source names."""
    places = source["row"] if isinstance(source, dict) else source
    return [places] if isinstance(places, str) else places


def unlike(figure: str, line: str, source: Any) -> str:
    """What is wrong with the rows that a figure of this line of a page is said to come from, or ""."""
    places = rows_of(source)
    there = set().union(*(numbers(row(place)[0]) for place in places))
    values = rows_of({"row": source["is"]}) if isinstance(source, dict) else []
    if not all(says(figure, computed(value)) for value in values):
        return f"{', '.join(values)} is another figure"
    if "a few" in figure and there & set(A_FEW):
        return ""
    wanted = set().union(*map(numbers, values)) - {100} if values else set(said(figure)[0])
    if wanted - there:
        return f"the row lacks {sorted(wanted - there)}"
    known = {place: facts(place) for place in places if file_of(place).parent == RESULTS}
    for place, found in known.items():
        unseeded = COSTS.search(figure) or file_of(place).name in NOT_LEARNED
        if lacking := [name for name, values in found.items() if not values and not (name == "seeds" and unseeded)]:
            return f"{place} has no {' and no '.join(lacking)}"
    for name in ("machine", "date"):
        other = set(FACTS[name].findall(line)).difference(*(found[name] for found in known.values()))
        if known and other:
            return f"the page says {', '.join(other)}, and not what the row says"
    return ""


def complaint(figure: str, line: str, source: Any) -> str:
    """What is wrong with the source of a figure that this line of a page states, or ""."""
    if source is None:
        return "stands alone"
    try:
        if is_code(source):
            return "" if says(figure, computed(source)) else f"the code has {computed(source):g}"
        return unlike(figure, line, source)
    except (ValueError, ImportError, AttributeError, LookupError) as error:
        return str(error)


def looked_up() -> Iterator[tuple[str, str, Any, str]]:
    """(page, figure, source, complaint) of each figure that a page states, and of each source that no page needs."""
    sources = tomllib.loads((RESULTS / "figures.toml").read_text("utf-8"))
    reasons = sources.pop("not-measured")
    unmeasured = {figure for figures in reasons.values() for figure in figures}
    used: set[str] = set()
    for page in PAGES:
        own = sources.pop(page, {})
        measured = {figure for figure, source in own.items() if not is_code(source)}
        found = dict.fromkeys(stated(page, (ROOT / page).read_text("utf-8"), measured))
        for figure, line in found:
            if figure in unmeasured and figure not in own:
                used.add(figure)
            else:
                yield page, figure, own.get(figure), complaint(figure, line, own.get(figure))
        yield from ((page, figure, None, "is stated no longer") for figure in own.keys() - {one for one, _ in found})
    yield from (("figures.toml", name, None, "is needed by no page") for name in (unmeasured - used) | sources.keys())


def main() -> int:
    wrong = []
    for page, figure, source, what in looked_up():
        if what:
            wrong.append(f"{page}: {figure!r} {what}")
            continue
        print(f"{page}: {figure}")
        for place in rows_of(source):
            known = facts(place) if not is_code(source) and file_of(place).parent == RESULTS else {}
            print(f"    {place}")
            for name, values in known.items():
                print(f"        {name}: {', '.join(dict.fromkeys(values))}")
    print(*wrong, f"{len(wrong)} figures stand alone, or their sources say something else.", sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
