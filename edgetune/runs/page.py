"""The page that reports share: one HTML file that asks for nothing outside and runs nothing.

Elements of HTML and SVG escape what they hold: all but Html is text, whoever wrote it. They make well-formed XML, too.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
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
