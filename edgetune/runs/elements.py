"""Elements of HTML and SVG that escape what they hold: what is not Html already is text, whoever wrote it.

What they make is well-formed XML, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ..errors import escaped

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
