"""The page that reports share, one HTML file that asks for nothing outside and runs nothing, and line charts in it.

Elements of HTML and SVG escape what they hold: all but Html is text, whoever wrote it. They make well-formed XML, too.

Charts are SVG: axes with names, units and ticks, lines told apart by colour and dashes.

Sizes are in units of the drawing, which a page scales to its width: on a telephone one is about a pixel. Colours are
classes of the page's style sheet, so that a chart follows light and dark.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from itertools import pairwise
from pathlib import Path

from ..disk import replaced
from ..errors import escaped

STYLE = Path(__file__).with_name("style.css")
NOTHING = "–"
VOID = {"meta", "line", "path", "circle"}  # what has no content, and no end tag


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Html | None


def text(value: str) -> Html:
    """Plain text as HTML. What a terminal would obey, or XML forbids, is shown as \\x1b and the like."""
    return value if isinstance(value, Html) else Html(escape(escaped(value)))


def join(parts: Iterable[Content], between: str = "") -> Html:
    return Html(between.join(text(part) for part in parts if part is not None))


def element(name: str, /, *content: Content, **attributes: str | float | None) -> Html:
    """An element. attributes: class_ is class, data_x is data-x; None leaves an attribute out."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"' for key, value in attributes.items()
                    if value is not None)
    if name in VOID:
        return Html(f"<{name}{given}/>")
    return Html(f"<{name}{given}>{join(content)}</{name}>")


def write_page(path: Path, title: str, parts: Iterable[Content]) -> None:
    """The page as a file, whole or not at all. Raises DiskError."""
    with replaced(path) as beside:
        beside.write_text(page(title, parts), "utf-8")


def page(title: str, parts: Iterable[Content]) -> str:
    style = Html(STYLE.read_text("utf-8"))
    allowed = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    head = element("head", element("meta", charset="utf-8"),
                   element("meta", http_equiv="Content-Security-Policy", content=policy),
                   element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                   element("title", title), element("style", style))
    body = element("body", element("h1", title), *parts)
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def section(title: str, *content: Content) -> Html | None:
    """None without content."""
    found = [part for part in content if part]
    return join([element("h2", title), *found]) if found else None


def tiles(rows: Iterable[tuple[str, str, str]]) -> Html | None:
    """(name, value, a word more) of what matters most."""
    made = [element("div", element("dt", name), element("dd", value, element("small", more) if more else None))
            for name, value, more in rows]
    return element("dl", *made) if made else None


def table(columns: Sequence[str], rows: Iterable[Sequence[Content]], numbers: Sequence[int] = ()) -> Html | None:
    """numbers: columns that are aligned to the right. columns: may be empty, for no header. None without rows."""
    lines = [element("tr", *(element("td", cell, class_="n" if at in numbers else None) for at, cell in enumerate(row)))
             for row in rows]
    if not lines:
        return None
    heads = [element("th", name, class_="n" if at in numbers else None) for at, name in enumerate(columns)]
    return element("div", element("table", element("tr", *heads) if heads else None, *lines), class_="scroll")


def details(title: str, content: Content) -> Html | None:
    return element("details", element("summary", title), content) if content else None


def number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


WIDTH = 360
HEIGHT = 216
LEFT = 46
RIGHT = WIDTH - 12
TOP = 24
BOTTOM = HEIGHT - 36
CLEAR = 4  # above the top, for dots
TICKS = 6  # pieces of an axis, at most
COLOURS = 8  # of the style sheet
DASHES = 4
FAR = 3.0  # a limit that is higher than the values by this factor is named, and not drawn

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Style:
    """The style of a line: a colour and a pattern of dashes (0: none) of the style sheet."""

    colour: int
    dash: int = 0

    @property
    def classes(self) -> str:
        return f"line c{self.colour} d{self.dash}"


STYLES = [Style(number % COLOURS, (number + number // COLOURS) % DASHES) for number in range(COLOURS * DASHES)]
"""As many as can be told apart; neighbours differ in both."""


@dataclass(frozen=True)
class ChartLine:
    """points: (x, y) in order of x; a y that is not finite breaks the line. dots: each is drawn, with its values."""

    name: str
    points: Points
    style: Style
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at x. kind: a class of the style sheet; name: what the legend says of the kind."""

    x: float
    kind: str
    name: str
    cause: str


@dataclass(frozen=True)
class Chart:
    """x, y: names of the axes, with their units. limit: a line across, (name, value). from_zero: of the y axis. top:
    the highest value that is drawn; None: that of the lines.
    """

    title: str
    x: str
    y: str
    lines: Sequence[ChartLine]
    limit: tuple[str, float] | None = None
    marks: Sequence[Mark] = ()
    from_zero: bool = False
    top: float | None = None

    @property
    def limit_drawn(self) -> float | None:
        """The limit's value, unless it is far above all that was measured."""
        if self.limit is None or self.limit[1] > FAR * max(_finite(self), default=0.0):
            return None
        return self.limit[1]


@dataclass(frozen=True)
class Scale:
    """Places values from low to high between two places of the drawing. ticks: round values."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def figure(chart: Chart) -> Html | None:
    """A chart with its caption and legend; None where there is no finite value to draw."""
    if not _finite(chart):
        return None
    return element("figure", element("figcaption", chart.title), _drawing(chart), _legend(chart))


def swatch(style: Style) -> Html:
    """A short piece of a line, for legends and tables."""
    return _sample(style.classes)


def scale(low: float, high: float, start: float, end: float, whole: bool = False) -> Scale:
    """A scale between round values around low and high. whole: ticks are whole numbers, both ends stay as they are."""
    if high <= low:
        pad = abs(low) / 10 or 1.0
        low, high = (low, low + 1.0) if whole else (low - pad, high + pad)
    least = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    if whole:
        step = max(step, 1.0)
        first = math.ceil(low / step)
        last = math.floor(high / step)
    else:
        first = math.floor(low / step + 1e-9)
        last = math.ceil(high / step - 1e-9)
        low = first * step
        high = last * step
    return Scale(low, high, start, end, [number * step for number in range(first, last + 1)])


def _finite(chart: Chart) -> list[float]:
    return [y for line in chart.lines for _, y in line.points if math.isfinite(y)]


def _drawing(chart: Chart) -> Html:
    values = _finite(chart)
    if chart.limit_drawn is not None:
        values.append(chart.limit_drawn)
    xs = [x for line in chart.lines for x, _ in line.points]
    across = scale(min(xs), max(xs), LEFT, RIGHT, whole=True)
    highest = max(values) if chart.top is None else min(max(values), chart.top)
    up = scale(min(0.0, *values) if chart.from_zero else min(values), highest, BOTTOM, TOP)
    parts = [*_grid(across, up), _name(chart.y, 4, 12), _name(chart.x, RIGHT, HEIGHT - 4, "end"),
             *(_mark(mark, across) for mark in chart.marks if across.low <= mark.x <= across.high)]
    if chart.limit_drawn is not None:
        y = _place(up(chart.limit_drawn))
        parts.append(element("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="limit"))
    height = HEIGHT - TOP + CLEAR  # an svg within an svg shows nothing beyond its edges
    parts.append(element("svg", *(_curve(line, across, up) for line in chart.lines), y=TOP - CLEAR, width=WIDTH,
                         height=height, viewBox=f"0 {TOP - CLEAR} {WIDTH} {height}"))
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=_spoken(chart))


def _grid(across: Scale, up: Scale) -> Iterator[Html]:
    for value, label in zip(up.ticks, labels(up.ticks), strict=True):
        y = _place(up(value))
        yield element("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="grid")
        yield element("text", label, x=LEFT - 6, y=_place(up(value) + 4), text_anchor="end", class_="y")
    for value, label in zip(across.ticks, labels(across.ticks), strict=True):
        x = _place(across(value))
        yield element("line", x1=x, x2=x, y1=BOTTOM, y2=BOTTOM + 4, class_="axis")
        yield element("text", label, x=x, y=BOTTOM + 16, text_anchor="middle", class_="x")
    yield element("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis")


def labels(ticks: Sequence[float]) -> list[str]:
    """Ticks as people read them, all in the same form: 1,000; 0.05; 2e-4."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    if largest and largest < 0.01:
        power = math.floor(math.log10(largest) + 1e-9)
        return [f"{round(tick / 10.0**power, 6):g}e{power}" if tick else "0" for tick in ticks]
    if largest >= 1e6:
        return [f"{tick:.3g}" for tick in ticks]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _name(name: str, x: float, y: float, anchor: str = "start") -> Html:
    return element("text", name, x=x, y=y, text_anchor=anchor, class_="name")


def _mark(mark: Mark, across: Scale) -> Html:
    x = _place(across(mark.x))
    line = element("line", x1=x, x2=x, y1=TOP, y2=BOTTOM)
    return element("g", element("title", f"step {mark.x:,.0f}: {mark.cause}"), line, class_=f"mark {mark.kind}")


def _curve(line: ChartLine, across: Scale, up: Scale) -> Html:
    """A path of straight pieces; single points, and all where the line has dots, as circles."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if math.isfinite(y):
            pieces[-1].append((x, y))
        else:
            pieces.append([])
    data = "".join("M" + "L".join(f"{_place(across(x))} {_place(up(y))}" for x, y in piece)
                   for piece in pieces if piece)
    alone = [point for piece in pieces for point in piece if line.dots or len(piece) == 1]
    dots = (element("circle", cx=_place(across(x)), cy=_place(up(y)), r=3) if not line.dots else element(
        "g", element("title", f"{line.name}, step {x:,.0f}: {y:.4g}"),
        element("circle", cx=_place(across(x)), cy=_place(up(y)), r=3)) for x, y in alone)
    return element("g", element("path", d=data), *dots, class_=line.style.classes)


def _place(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _legend(chart: Chart) -> Html | None:
    """None where the caption says it all."""
    items = [join([swatch(line.style), line.name]) for line in chart.lines if line.points]
    if chart.limit is not None:
        name, value = chart.limit
        said = f"{name}: {value:,.0f} {chart.y}"
        drawn = chart.limit_drawn is not None
        items.append(join([_sample("limit"), said]) if drawn else text(f"{said}, above this chart"))
    kinds = {mark.kind: mark.name for mark in chart.marks}
    items += [join([_sample(f"mark {kind}", upright=True), name]) for kind, name in kinds.items()]
    return element("ul", *(element("li", item) for item in items), class_="legend") if len(items) > 1 else None


def _sample(classes: str, upright: bool = False) -> Html:
    line = element("path", d="M14 0V10" if upright else "M1 5H27")
    return element("svg", element("g", line, class_=classes), viewBox="0 0 28 10", class_="swatch", aria_hidden="true")


def _spoken(chart: Chart) -> str:
    """Text for those who cannot see it: where each line begins and ends."""
    said = []
    for line in chart.lines:
        known = [(x, y) for x, y in line.points if math.isfinite(y)]
        if known:
            said.append(f"{line.name} from {known[0][1]:.4g} at {known[0][0]:,.0f} to {known[-1][1]:.4g} at "
                        f"{known[-1][0]:,.0f}")
    return f"{chart.title}: {'; '.join(said)}"
