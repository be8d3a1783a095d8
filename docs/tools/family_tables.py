"""The families of docs/reference/families.md, each with its options, from their modules and classes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import option_tables as options

from edgetune.adapters.base import families
from edgetune.options import declared

LLAMA = "llama.cpp"  # answers with most of them


def lines() -> Iterator[str]:
    yield from (f"{LLAMA} answers with an adapter, unless its family names another engine.", "")
    for name, kind in families().items():
        engine = "" if kind.served_by == LLAMA else f" Answered by {kind.served_by}."
        yield from (f"## {name}", "", first_paragraph(sys.modules[kind.__module__]) + engine, "")
        if name == "lora":
            names = options.flags(spec.name for spec in declared(kind))
            yield from (f"The [training options](cli.md#training-options) {names}.", "")
        else:
            yield from options.listed(declared(kind))


def first_paragraph(documented: object) -> str:
    return options.line((inspect.getdoc(documented) or "").partition("\n\n")[0])
