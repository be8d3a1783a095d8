"""The families of docs/reference/families.md: a table of all, then each with its options, from their classes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import option_tables as options

from edgetune.adapters.base import families
from edgetune.options import declared


def lines() -> Iterator[str]:
    yield from ("| family | what it is | answered by |", "|---|---|---|")
    for name, kind in families().items():
        yield f"| [{name}](#{name}) | {first_paragraph(kind)} | {kind.served_by} |"
    yield ""
    for name, kind in families().items():
        yield from (f"## {name}", "", first_paragraph(sys.modules[kind.__module__]), "")
        yield from options.listed(declared(kind))


def first_paragraph(documented: object) -> str:
    return options.line((inspect.getdoc(documented) or "").partition("\n\n")[0])
