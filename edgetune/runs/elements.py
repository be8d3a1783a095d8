"""Elements of HTML and SVG that escape what they hold: what is not Html already is text, whoever wrote it.

What they make is well-formed XML, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = {"meta", "line", "path", "circle"}  # what has no content, and no end tag
_OBEYED = [*range(32), *range(0x7F, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF]  # controls, halves of pairs
_SHOWN = {code: chr(code).encode("unicode_escape").decode() for code in _OBEYED if chr(code) not in "\n\t"}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Html | None


def text(value: str) -> Html:
    """Plain text as HTML. What a terminal would obey, or XML forbids, is shown as \\x1b and the like."""
    return value if isinstance(value, Html) else Html(escape(value.translate(_SHOWN)))


def join(parts: Iterable[Content], between: str = "") -> Html:
    return Html(between.join(text(part) for part in parts if part is not None))


def element(name: str, /, *content: Content, **attributes: str | float | None) -> Html:
    """An element. attributes: class_ is class, data_x is data-x; None leaves an attribute out."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"' for key, value in attributes.items()
                    if value is not None)
    if name in VOID:
        return Html(f"<{name}{given}/>")
    return Html(f"<{name}{given}>{join(content)}</{name}>")
